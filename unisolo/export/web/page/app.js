// The page: it takes images, asks the worker, and shows what comes back.

import { labelText } from "./paint.js";
import { connect } from "./worker-client.js";

const $ = (id) => document.getElementById(id);
const NAMES = { panoptic: "Panoptic", instances: "Instances", boxes: "Boxes" };

const state = {
  facts: null,
  view: "boxes",
  scores: { map: 0.5, instances: 0.3 }, // least scores: of the panoptic map, and of instances
  name: null, // of the image whose results are shown
  drawn: null, // what the worker drew last
  busy: false,
  next: null, // the image that was given while another was at work
  stream: null, // the camera's
};

$("not-started").remove();
const worker = connect((text, share) => showStatus(text, share));
listen();
start();

async function start() {
  try {
    const wanted = new URLSearchParams(location.search).get("backend") ?? "auto";
    const { facts, backend, note } = await worker.ask("start", { wanted });
    state.facts = facts;
    const views = viewsOf(facts);
    state.view = views[0];
    state.scores = { map: facts.thresholds.panoptic_score, instances: facts.thresholds.score };
    document.title = `${facts.name}: segment an image`;
    $("title").textContent = facts.name;
    $("backend").textContent = backend;
    $("backend").title = note;
    $("backend").hidden = false;
    makeTabs(views);
    showThreshold();
    showStatus("Ready");
    document.body.dataset.ready = backend;
    takeNext();
  } catch (error) {
    showError(`The page could not start: ${error.message}`);
  }
}

/** Take an image: at once, or when the one before is done. */
function give(source, name) {
  state.next = { source, name };
  if (state.facts !== null && !state.busy) takeNext();
  else showStatus("The image is taken as soon as the model is ready", null);
}

async function takeNext() {
  if (state.next === null || state.busy) return;
  const { source, name } = state.next;
  state.next = null;
  state.busy = true;
  if (state.stream === null) showStatus("Looking at the image", null);
  try {
    const seen = await worker.ask("predict", { source, name });
    state.name = name;
    await redraw();
    showTimes(seen);
    if (state.stream === null) showStatus("Done");
    document.body.dataset.done = String(Number(document.body.dataset.done ?? 0) + 1);
  } catch (error) {
    showError(`${name}: ${error.message}`);
  } finally {
    state.busy = false;
    enable(state.name !== null);
    if (state.next !== null) takeNext();
    else if (state.stream !== null) requestAnimationFrame(takeFrame);
  }
}

async function redraw() {
  if (state.name === null) return;
  const { view } = state;
  const drawn = await worker.ask("draw", {
    view,
    threshold: scoreOfView(),
    labels: $("labels").checked,
  });
  state.drawn = drawn;
  const canvas = $("canvas");
  canvas.width = drawn.picture.width;
  canvas.height = drawn.picture.height;
  canvas.getContext("2d").drawImage(drawn.picture, 0, 0);
  drawn.picture.close();
  $("figure").hidden = false;
  $("welcome").hidden = true;
  $("drop").classList.add("filled");
  showList(drawn.regions, drawn.width * drawn.height);
  mark(null);
}

let redrawing = false;
let again = false;

/** Redraw once more after the running one, however often a slider moves in between. */
async function redrawSoon() {
  again = true;
  if (redrawing) return;
  redrawing = true;
  try {
    while (again) {
      again = false;
      await redraw();
    }
  } catch (error) {
    showError(error.message);
  } finally {
    redrawing = false;
    document.body.dataset.redrawn = `${state.view} ${scoreOfView()}`;
  }
}

function scoreOfView() {
  return state.view === "panoptic" ? state.scores.map : state.scores.instances;
}

function viewsOf({ panoptic, masks }) {
  return [...(panoptic ? ["panoptic"] : []), ...(masks ? ["instances"] : []), "boxes"];
}

function makeTabs(views) {
  const tabs = views.map((view) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.role = "tab";
    tab.id = `view-${view}`;
    tab.textContent = NAMES[view];
    tab.addEventListener("click", () => choose(view));
    return tab;
  });
  $("views").replaceChildren(...tabs);
  $("views").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    const place = (views.indexOf(state.view) + step + views.length) % views.length;
    choose(views[place]);
    tabs[place].focus();
  });
  showTab();
}

function choose(view) {
  state.view = view;
  showTab();
  showThreshold();
  redrawSoon();
}

function showTab() {
  for (const tab of $("views").children) {
    const chosen = tab.id === `view-${state.view}`;
    tab.ariaSelected = String(chosen);
    tab.tabIndex = chosen ? 0 : -1;
  }
}

function showThreshold() {
  $("threshold").value = scoreOfView();
  $("threshold-text").textContent = scoreOfView().toFixed(2);
}

function showList(regions, pixels) {
  const things = regions.filter(({ isthing }) => isthing).length;
  const stuff = regions.length - things;
  const parts = [`${things} ${things === 1 ? "object" : "objects"}`];
  if (stuff) parts.push(`${stuff} ${stuff === 1 ? "surface" : "surfaces"}`);
  $("summary").textContent = regions.length ? `Found ${parts.join(", ")}` : "Nothing found";
  $("list").replaceChildren(...regions.map((region) => listItem(region, pixels)));
  const names = regions.map(labelText).join(", ");
  $("canvas").ariaLabel = `${state.name}: ${names || "nothing found"}`;
}

function listItem(region, pixels) {
  const item = document.createElement("li");
  item.dataset.region = region.id;
  const dot = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  dot.setAttribute("viewBox", "0 0 12 12");
  dot.setAttribute("width", "12");
  const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  for (const name of ["cx", "cy", "r"]) circle.setAttribute(name, "6");
  circle.setAttribute("fill", `rgb(${region.color.join(",")})`);
  dot.append(circle);
  const name = document.createElement("span");
  name.textContent = region.name;
  const share = document.createElement("small");
  const percent = (100 * region.area) / pixels;
  share.textContent = region.isthing
    ? region.score.toFixed(2)
    : `${percent < 1 ? "<1" : Math.round(percent)} %`;
  item.append(dot, name, share);
  item.addEventListener("pointerenter", () => mark(region));
  item.addEventListener("pointerleave", () => mark(null));
  return item;
}

/** Frame a region on the image and in the list; null = none. */
function mark(region) {
  for (const item of $("list").children) {
    item.classList.toggle("marked", region !== null && item.dataset.region === String(region.id));
  }
  $("mark").hidden = region === null || !region.isthing;
  if (region === null) return;
  const { width, height } = state.drawn;
  const [left, top, right, bottom] = region.box;
  Object.assign($("mark").style, {
    left: `${(100 * left) / width}%`,
    top: `${(100 * top) / height}%`,
    width: `${(100 * (right - left)) / width}%`,
    height: `${(100 * (bottom - top)) / height}%`,
  });
}

/** The region under a pixel; where there is no map, the one with the smallest box around it. */
function regionAt(x, y) {
  const { map, regions, width } = state.drawn;
  if (map !== null) {
    const id = map[y * width + x];
    return regions.find((region) => region.id === id) ?? null;
  }
  const around = regions.filter(
    ({ box }) => x >= box[0] && x < box[2] && y >= box[1] && y < box[3],
  );
  return around.sort((a, b) => a.area - b.area)[0] ?? null;
}

function hover(event) {
  if (state.drawn === null) return;
  const frame = $("canvas").getBoundingClientRect();
  const place = (at, length, pixels) =>
    Math.min(Math.max(Math.floor((at / length) * pixels), 0), pixels - 1);
  const [left, top] = [event.clientX - frame.left, event.clientY - frame.top];
  const x = place(left, frame.width, state.drawn.width);
  const region = regionAt(x, place(top, frame.height, state.drawn.height));
  mark(region);
  $("tip").hidden = region === null;
  if (region === null) return;
  $("tip").textContent = labelText(region);
  const wide = $("tip").offsetWidth;
  $("tip").style.left = `${Math.max(Math.min(left + 14, frame.width - wide), 0)}px`;
  $("tip").style.top = `${top > 44 ? top - 38 : top + 22}px`;
}

function showTimes({ height, width, input, times }) {
  const seconds = (time) => `${(time / 1000).toFixed(2)} s`;
  const whole = times.prepare + times.model + times.masks;
  $("times").textContent =
    `${width} × ${height} pixels, seen at ${input[1]} × ${input[0]}. ` +
    `${seconds(whole)}: reading ${seconds(times.prepare)}, model ${seconds(times.model)}, ` +
    `masks ${seconds(times.masks)}.`;
}

function showStatus(text, share) {
  $("status").classList.remove("error");
  $("status-text").textContent = text;
  $("progress").hidden = share === undefined;
  if (typeof share === "number") $("progress").value = share;
  else $("progress").removeAttribute("value");
}

function showError(text) {
  showStatus(text);
  $("status").classList.add("error");
}

function enable(on) {
  for (const id of ["save-picture", "save-coco", "save-panoptic"]) $(id).disabled = !on;
  $("save-panoptic").hidden = !state.facts.panoptic;
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function save(kind) {
  try {
    if (kind === "picture") {
      const blob = await new Promise((done) => $("canvas").toBlob(done));
      download(blob, `${state.name.replace(/\.[^.]*$/, "")}-${state.view}.png`);
      return;
    }
    const { instances, map } = state.scores;
    const file = await worker.ask("save", { kind, score: instances, panopticScore: map });
    download(file.blob, file.name);
  } catch (error) {
    showError(error.message);
  }
}

async function switchCamera() {
  if (state.stream !== null) return stopCamera();
  try {
    if (!navigator.mediaDevices) throw new Error("pages need https or localhost for the camera");
    state.stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment" },
    });
  } catch (error) {
    return showError(`The camera cannot be used: ${error.message}`);
  }
  $("camera").ariaPressed = "true";
  $("camera").textContent = "Stop";
  $("video").srcObject = state.stream;
  await $("video").play();
  showStatus("Camera");
  takeFrame();
}

function stopCamera() {
  for (const track of state.stream.getTracks()) track.stop();
  state.stream = null;
  $("camera").ariaPressed = "false";
  $("camera").textContent = "Camera";
  showStatus("Done");
}

/** Hand the camera's picture on; the next one is taken when its results are shown. */
async function takeFrame() {
  if (state.stream === null || state.busy) return;
  try {
    give(await createImageBitmap($("video")), "camera.png");
  } catch (error) {
    stopCamera();
    showError(`The camera gives no picture: ${error.message}`);
  }
}

function takeFiles(files) {
  const file = [...(files ?? [])][0];
  if (file === undefined) return;
  if (state.stream !== null) stopCamera();
  give(file, file.name || "pasted.png");
}

function listen() {
  $("file").addEventListener("change", () => {
    takeFiles($("file").files);
    $("file").value = ""; // the same file may be chosen again
  });
  const drop = $("drop");
  for (const kind of ["dragenter", "dragover"]) {
    window.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  for (const kind of ["dragleave", "drop"]) {
    window.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.remove("over");
    });
  }
  window.addEventListener("drop", (event) => takeFiles(event.dataTransfer?.files));
  window.addEventListener("paste", (event) => takeFiles(event.clipboardData?.files));
  $("camera").addEventListener("click", switchCamera);
  $("labels").addEventListener("change", redrawSoon);
  $("threshold").addEventListener("input", () => {
    state.scores[state.view === "panoptic" ? "map" : "instances"] = Number($("threshold").value);
    $("threshold-text").textContent = scoreOfView().toFixed(2);
    redrawSoon();
  });
  $("canvas").addEventListener("pointermove", hover);
  $("canvas").addEventListener("pointerdown", hover);
  $("canvas").addEventListener("pointerleave", () => {
    $("tip").hidden = true;
    if (state.drawn !== null) mark(null);
  });
  for (const kind of ["picture", "coco", "panoptic"]) {
    $(`save-${kind}`).addEventListener("click", () => save(kind));
  }
}
