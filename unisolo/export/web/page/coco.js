// Results as COCO files have them.

/** Runs of a mask (see finish.js) as compressed COCO RLE. */
export function encodeRle({ runs, box }, height, width) {
  return { size: [height, width], counts: packCounts(columnCounts(runs, box, height, width)) };
}

/** Lengths of runs down the columns, beginning with the pixels outside. */
function columnCounts(runs, [left, top, right, bottom], height, width) {
  const high = bottom - top;
  const columns = new Uint8Array((right - left) * high);
  for (let at = 0; at < runs.length; at += 3) {
    for (let x = runs[at + 1]; x < runs[at + 2]; x += 1) {
      columns[(x - left) * high + runs[at] - top] = 1;
    }
  }
  const counts = [];
  let last = 0; // the value of the current run, and where it began
  let began = 0;
  const change = (place) => {
    counts.push(place - began);
    began = place;
    last = 1 - last;
  };
  for (let x = left; x < right; x += 1) {
    for (let y = top; y < bottom; y += 1) {
      if (columns[(x - left) * high + y - top] !== last) change(x * height + y);
    }
    // At its end a run goes on in the next column only where the box is as high as the image.
    if (last === 1 && bottom < height) change(x * height + bottom);
    else if (last === 1 && top > 0) change((x + 1) * height);
  }
  if (last === 1 && right < width) change(right * height);
  if (began < height * width) counts.push(height * width - began);
  return counts;
}

/** Numbers as text: five bits a letter, each less the one two places before it. */
function packCounts(counts) {
  let text = "";
  counts.forEach((count, place) => {
    let rest = place > 2 ? count - counts[place - 2] : count;
    for (let more = true; more; ) {
      let letter = rest & 31;
      rest >>= 5;
      more = letter & 16 ? rest !== -1 : rest !== 0;
      if (more) letter |= 32;
      text += String.fromCharCode(letter + 48);
    }
  });
  return text;
}

/**
 * One image as a COCO file: its instances as annotations, and the panoptic segments.
 * @param {object} found name, height, width, instances, segments (null without a map)
 * @param {object} facts facts.json
 * @param {number} threshold Least score of an instance.
 */
export function toCoco(found, facts, threshold) {
  const { name, height, width, instances, segments } = found;
  const least = Math.fround(threshold);
  const annotations = instances
    .filter(({ score }) => score >= least)
    .map((instance, place) => {
      const [x1, y1, x2, y2] = instance.box;
      const entry = {
        id: place + 1,
        image_id: 1,
        category_id: facts.categories[instance.label].id,
        bbox: [x1, y1, x2 - x1, y2 - y1],
        area: facts.masks ? instance.area : (x2 - x1) * (y2 - y1),
        iscrowd: 0,
        score: instance.score,
      };
      if (facts.masks) entry.segmentation = encodeRle(instance, height, width);
      return entry;
    });
  const file = {
    info: { description: `${facts.name}, unisolo ${facts.unisolo}, in the browser` },
    images: [{ id: 1, file_name: name, height, width }],
    categories: facts.categories.map(({ id, name: text, isthing, color, supercategory }) => ({
      id,
      name: text,
      isthing,
      color,
      supercategory,
    })),
    annotations,
  };
  if (segments !== null) {
    file.panoptic = {
      file_name: panopticName(name),
      segments_info: segments.map((segment) => ({
        id: segment.id,
        category_id: facts.categories[segment.label].id,
        iscrowd: 0,
        isthing: facts.categories[segment.label].isthing,
        area: segment.area,
        score: segment.score,
        bbox: [
          segment.box[0],
          segment.box[1],
          segment.box[2] - segment.box[0],
          segment.box[3] - segment.box[1],
        ],
      })),
    };
  }
  return file;
}

/** Name of the panoptic PNG that belongs to an image. */
export function panopticName(name) {
  return `${name.replace(/\.[^.]*$/, "")}-panoptic.png`;
}

/** A panoptic map as opaque RGBA, id = R + 256 G + 65536 B. */
export function panopticPixels(map) {
  const pixels = new Uint8ClampedArray(map.length * 4);
  for (let at = 0; at < map.length; at += 1) {
    pixels[at * 4] = map[at] & 255;
    pixels[at * 4 + 1] = map[at] >> 8;
    pixels[at * 4 + 3] = 255;
  }
  return pixels;
}
