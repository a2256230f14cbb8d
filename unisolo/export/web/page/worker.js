// Everything heavy, away from the page: decoding, the model, masks, pictures and files.

import { panopticName, panopticPixels, toCoco } from "./coco.js";
import { startEngine } from "./engine.js";
import { finishMask, finishStuff, makeFrame } from "./finish.js";
import { mergePanoptic, stackInstances } from "./merge.js";
import { blendMap, drawBoxes, drawLabels, labelSpots, makeRegions } from "./paint.js";
import { modelInput } from "./prepare.js";

const MOST_PIXELS = 80e6; // a picture of this many takes about 1.5 GB while it is drawn

let facts = null;
let engine = null;
let found = null; // the last image and its results

const actions = { start, predict, draw, save };

let queue = Promise.resolve(); // one question after the other

self.onmessage = ({ data }) => {
  queue = queue.then(() => answer(data));
};

async function answer(data) {
  try {
    const [result, transfer = []] = await actions[data.action](data);
    self.postMessage({ id: data.id, answer: result }, transfer);
  } catch (error) {
    self.postMessage({ id: data.id, error: sentence(error) });
  }
}

async function start({ wanted }) {
  const report = (text, share) => self.postMessage({ progress: text, share });
  const answer = await fetch(new URL("facts.json", import.meta.url));
  if (!answer.ok) throw new Error(`facts.json could not be loaded (${answer.status})`);
  facts = await answer.json();
  engine = await startEngine(facts, wanted, report);
  return [{ facts, backend: engine.backend, note: engine.note }];
}

async function predict({ source, name }) {
  const began = performance.now();
  const { rgba, rgb, height, width } = await readImage(source);
  const input = modelInput(rgb, height, width, facts.input);
  const prepared = performance.now();
  const outputs = await engine.run(input);
  const ran = performance.now();
  const instances = finishInstances(outputs, input, height, width);
  const stuff = facts.panoptic ? finishStuffOf(outputs, input, height, width) : null;
  found = { name, rgba, height, width, instances, stuff, merged: null };
  const times = {
    prepare: prepared - began,
    model: ran - prepared,
    masks: performance.now() - ran,
  };
  return [{ height, width, times, input: input.valid, count: instances.length }];
}

/** Decoded, upright, over white where it is transparent. */
async function readImage(source) {
  let bitmap = source;
  if (source instanceof Blob) {
    if (source.size === 0) throw new Error("the file is empty");
    bitmap = await createImageBitmap(source, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
    }).catch(() => {
      throw new Error("this file is not an image that the browser can read; try a PNG or JPEG");
    });
  }
  const { height, width } = bitmap;
  if (height * width > MOST_PIXELS) {
    throw new Error(
      `the image has ${Math.round((height * width) / 1e6)} million pixels; at most ` +
        `${MOST_PIXELS / 1e6} million are taken, so make it smaller`,
    );
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(height * width * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return { rgba, rgb, height, width };
}

function frameOf({ padded, valid }, height, width) {
  const sides = facts.input.fixed ?? padded;
  return makeFrame(facts.input.stride, sides, valid, height, width);
}

function finishInstances(outputs, input, height, width) {
  const frame = frameOf(input, height, width);
  const probs = outputs.mask_probs.data;
  const instances = [];
  for (let place = 0; place < Number(outputs.count.data[0]); place += 1) {
    const mask = finishMask(probs, place, frame, facts.thresholds.mask);
    if (mask.area === 0) continue;
    const [score, label] = [outputs.scores.data[place], Number(outputs.labels.data[place])];
    instances.push({ ...mask, score, label });
  }
  return instances;
}

function finishStuffOf(outputs, input, height, width) {
  const { data, dims } = outputs.stuff_logits;
  return finishStuff(data, dims[1], frameOf(input, height, width));
}

/** The panoptic map at a threshold; kept, since several things are made of it. */
function mergedAt(score) {
  if (found.merged?.score !== score) {
    const { instances, stuff, height, width } = found;
    const things = facts.categories.filter(({ isthing }) => isthing).length;
    const merged = mergePanoptic(instances, stuff, height, width, {
      score,
      overlap: facts.thresholds.panoptic_overlap,
      area: facts.thresholds.stuff_area,
      numThings: things,
      numStuff: facts.categories.length - things,
    });
    found.merged = { score, ...merged };
  }
  return found.merged;
}

/** The picture of one view, and what lies where in it. */
function draw({ view, threshold, labels }) {
  const { height, width, instances } = found;
  const least = Math.fround(threshold);
  const shown = instances.filter(({ score }) => score >= least);
  let map = null;
  let entries = shown;
  if (view === "panoptic") ({ map, segments: entries } = mergedAt(threshold));
  else if (view === "instances") map = stackInstances(shown, height, width);
  const regions = makeRegions(entries, facts.categories);
  const scale = Math.max(1, Math.min(Math.round(1000 / Math.max(height, width)), 8));
  const { context, pixels } = enlarged(scale);
  if (map !== null) blendMap(pixels, map, regions, scale);
  context.putImageData(pixels, 0, 0);
  if (view === "boxes") drawBoxes(context, regions, scale);
  if (labels) {
    const spots = map === null ? null : labelSpots(map, regions, height, width);
    drawLabels(context, regions, scale, spots);
  }
  const picture = context.canvas.transferToImageBitmap();
  const copy = map?.slice() ?? null; // the worker keeps its own
  const answer = { picture, map: copy, regions, height, width };
  return [answer, copy === null ? [picture] : [picture, copy.buffer]];
}

/** The image on a canvas, enlarged so that lines and letters can be finer than its pixels. */
function enlarged(scale) {
  const { rgba, width, height } = found;
  const original = new ImageData(new Uint8ClampedArray(rgba), width, height);
  const canvas = new OffscreenCanvas(width * scale, height * scale);
  const context = canvas.getContext("2d", { willReadFrequently: scale > 1 });
  if (scale === 1) return { context, pixels: original };
  const small = new OffscreenCanvas(width, height);
  small.getContext("2d").putImageData(original, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  return { context, pixels: context.getImageData(0, 0, canvas.width, canvas.height) };
}

/** A file of the results: "coco" or "panoptic". */
async function save({ kind, score, panopticScore }) {
  if (kind === "coco") {
    const segments = found.stuff === null ? null : mergedAt(panopticScore).segments;
    const text = JSON.stringify(toCoco({ ...found, segments }, facts, score));
    const name = `${found.name.replace(/\.[^.]*$/, "")}-coco.json`;
    return [{ name, blob: new Blob([text], { type: "application/json" }) }];
  }
  const { map } = mergedAt(panopticScore);
  const canvas = new OffscreenCanvas(found.width, found.height);
  const pixels = new ImageData(panopticPixels(map), found.width, found.height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return [{ name: panopticName(found.name), blob: await canvas.convertToBlob() }];
}

/** What went wrong, for people. */
function sentence(error) {
  const text = String(error?.message ?? error);
  if (error instanceof RangeError || /allocat|memory/i.test(text)) {
    return "the browser has not enough memory for this image; try a smaller one";
  }
  return text;
}
