// The picture: stuff calm, things strong and with a contour, labels where they hide little. The
// colours are those of the Python package (facts.json).

const THING = 0.5;
const STUFF = 0.275;

/** Colour of the n-th instance of a category. */
export function regionColor(category, instance) {
  return category.paint[instance % category.paint.length];
}

/**
 * Regions to paint from segments or instances: {id, name, score, isthing, color, box, area}.
 * @param {object[]} entries with label, score, box, area, and id (default: place + 1)
 */
export function makeRegions(entries, categories) {
  const seen = new Map();
  return entries.map((entry, place) => {
    const category = categories[entry.label];
    const instance = seen.get(entry.label) ?? 0;
    seen.set(entry.label, instance + 1);
    return {
      id: entry.id ?? place + 1,
      name: category.name,
      isthing: Boolean(category.isthing),
      color: regionColor(category, instance),
      score: entry.score,
      box: entry.box,
      area: entry.area,
    };
  });
}

/**
 * Blend a map of regions over an image and draw contours.
 * @param {ImageData} pixels The image, opaque; changed.
 * @param {Uint16Array} map Region id of each pixel of the original image, 0 = none.
 * @param {number} scale Pixels of the image for one of the map.
 */
export function blendMap({ data, height, width }, map, regions, scale) {
  const reach = lineWidth(height, width);
  const stride = width / scale;
  const byId = [];
  for (const region of regions) byId[region.id] = region;
  const idAt = (x, y) => map[Math.floor(y / scale) * stride + Math.floor(x / scale)];
  // Whether another region is within reach; the border of the image is none.
  const onEdge = (id, x, y) =>
    (x >= reach && idAt(x - reach, y) !== id) ||
    (x + reach < width && idAt(x + reach, y) !== id) ||
    (y >= reach && idAt(x, y - reach) !== id) ||
    (y + reach < height && idAt(x, y + reach) !== id);
  for (let y = 0, at = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, at += 4) {
      const id = idAt(x, y);
      const region = byId[id];
      if (region === undefined) continue;
      const share = !region.isthing ? STUFF : onEdge(id, x, y) ? 1 : THING;
      for (let channel = 0; channel < 3; channel += 1) {
        data[at + channel] += (region.color[channel] - data[at + channel]) * share;
      }
    }
  }
}

function lineWidth(height, width) {
  return Math.max(1, Math.round(Math.sqrt(height * width) / 330));
}

/**
 * Draw the boxes of regions on a 2D context.
 * @param {number} scale Pixels of the canvas for one of the image.
 */
export function drawBoxes(context, regions, scale) {
  const { height, width } = context.canvas;
  context.lineWidth = Math.max(2, 2 * lineWidth(height, width));
  context.lineJoin = "round";
  for (const { box, color } of [...regions].sort((a, b) => b.area - a.area)) {
    const [left, top, right, bottom] = box.map((side) => side * scale);
    context.strokeStyle = `rgb(${color.join(",")})`;
    context.strokeRect(left, top, right - left, bottom - top);
  }
}

/**
 * Write names on a 2D context, things first, each where it overlaps none written before.
 * @param {number} scale As for `drawBoxes`.
 * @param {Map|null} spots From `labelSpots`; null = the middles of the boxes.
 */
export function drawLabels(context, regions, scale, spots) {
  const { height, width } = context.canvas;
  const size = Math.min(Math.max(Math.round(Math.sqrt(height * width) * 0.022), 10), 64);
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const taken = [];
  let room = height * width * 0.2;
  for (const region of [...regions].sort((a, b) => Number(b.isthing) - Number(a.isthing))) {
    const text = labelText(region);
    const high = Math.round(size * 1.5);
    const wide = Math.ceil(context.measureText(text).width + size * 1.5);
    if (wide > width || high > height || wide * high > room) continue;
    const box = region.box.map((side) => side * scale);
    const spot = spots?.get(region.id)?.map((at) => (at + 0.5) * scale);
    const place = findPlace(box, wide, high, height, width, taken, spot);
    if (place === null) continue;
    taken.push([place[0], place[1], place[0] + wide, place[1] + high]);
    room -= wide * high;
    context.fillStyle = "rgba(16, 18, 24, 0.76)";
    context.beginPath();
    context.roundRect(place[0], place[1], wide, high, high * 0.32);
    context.fill();
    context.fillStyle = `rgb(${region.color.join(",")})`;
    context.beginPath();
    context.arc(place[0] + size * 0.7, place[1] + high / 2, size * 0.3, 0, 2 * Math.PI);
    context.fill();
    context.fillStyle = "white";
    context.fillText(text, place[0] + size * 1.2, place[1] + high / 2 + size * 0.04);
  }
}

/** Name, and score where the region has one of its own. */
export function labelText({ name, isthing, score }) {
  return isthing ? `${name} ${score.toFixed(2)}` : name;
}

/** Upper left corner of a label, or null where no place is free. */
function findPlace([left, top, right, bottom], wide, high, height, width, taken, spot) {
  const [x, y] = spot ?? [(left + right) / 2, (top + bottom) / 2];
  const beside = [
    [x - wide / 2, top - high - 1],
    [x - wide / 2, bottom + 1],
    [right + 1, y - high / 2],
    [left - wide - 1, y - high / 2],
  ];
  const inside = [[x - wide / 2, y - high / 2]];
  // On a small region the label would hide what it names.
  const fits = wide <= right - left && 1.6 * high <= bottom - top;
  for (const [wantedX, wantedY] of fits ? [...inside, ...beside] : [...beside, ...inside]) {
    const placeX = Math.round(Math.min(Math.max(wantedX, 0), width - wide));
    const placeY = Math.round(Math.min(Math.max(wantedY, 0), height - high));
    const free = taken.every(
      (box) =>
        placeX >= box[2] || placeX + wide <= box[0] || placeY >= box[3] || placeY + high <= box[1],
    );
    if (free) return [placeX, placeY];
  }
  return null;
}

/** A point inside each region of a map, near its middle: where a label says what it means. */
export function labelSpots(map, regions, height, width) {
  const spots = new Map();
  for (const { id, box } of regions) {
    const [left, top, right, bottom] = box;
    const step = Math.max(1, Math.round(Math.max(right - left, bottom - top) / 48));
    let sumX = 0;
    let sumY = 0;
    const points = [];
    for (let y = top; y < bottom; y += step) {
      for (let x = left; x < right; x += step) {
        if (map[y * width + x] !== id) continue;
        points.push([x, y]);
        sumX += x;
        sumY += y;
      }
    }
    if (points.length === 0) continue;
    const middle = [sumX / points.length, sumY / points.length];
    const far = ([x, y]) => (x - middle[0]) ** 2 + (y - middle[1]) ** 2;
    spots.set(id, points.reduce((best, point) => (far(point) < far(best) ? point : best)));
  }
  return spots;
}
