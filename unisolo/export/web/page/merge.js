// Instances and stuff become one map in which every pixel has one owner, by the rules of
// `unisolo.ops.panoptic.merge_panoptic`.

/**
 * @param {object[]} instances By falling score: {runs, area, score, label}, none of them empty.
 * @param {Uint16Array} stuffIndex From `finishStuff`.
 * @param {object} rules numThings, numStuff, score, overlap (largest hidden share), area (least
 *   pixels of a stuff region)
 * @returns {{map: Uint16Array, segments: object[]}} 0 = nothing; a segment has id, label, score,
 *   area, box and, for things, `instance`, its place in `instances`
 */
export function mergePanoptic(instances, stuffIndex, height, width, rules) {
  const map = new Uint16Array(height * width);
  const segments = [];
  const least = Math.fround(rules.score);
  instances.forEach((instance, place) => {
    if (instance.score < least) return;
    const hidden = countTaken(map, instance.runs, width);
    if (Math.fround(hidden / instance.area) > Math.fround(rules.overlap)) return;
    if (hidden === instance.area) return;
    const id = segments.length + 1;
    paintFree(map, instance.runs, width, id);
    const { label, score } = instance;
    segments.push({ id, label, score, instance: place, area: instance.area - hidden });
  });
  const free = new Uint32Array(rules.numStuff + 1); // the last: any thing
  for (let at = 0; at < map.length; at += 1) if (map[at] === 0) free[stuffIndex[at]] += 1;
  const ids = new Uint16Array(rules.numStuff + 1);
  for (let index = 0; index < rules.numStuff; index += 1) {
    if (free[index] === 0 || free[index] < rules.area) continue;
    ids[index] = segments.length + 1;
    segments.push({ id: ids[index], label: rules.numThings + index, score: 1, area: free[index] });
  }
  for (let at = 0; at < map.length; at += 1) if (map[at] === 0) map[at] = ids[stuffIndex[at]];
  addBoxes(map, segments, height, width);
  return { map, segments };
}

/** A map of instances that may overlap: place + 1 of the smallest one on each pixel. */
export function stackInstances(instances, height, width) {
  const map = new Uint16Array(height * width);
  const order = instances.map((_, place) => place);
  order.sort((a, b) => instances[b].area - instances[a].area);
  for (const place of order) {
    const { runs } = instances[place];
    for (let at = 0; at < runs.length; at += 3) {
      map.fill(place + 1, runs[at] * width + runs[at + 1], runs[at] * width + runs[at + 2]);
    }
  }
  return map;
}

function countTaken(map, runs, width) {
  let taken = 0;
  for (let at = 0; at < runs.length; at += 3) {
    const end = runs[at] * width + runs[at + 2];
    for (let pixel = runs[at] * width + runs[at + 1]; pixel < end; pixel += 1) {
      if (map[pixel] !== 0) taken += 1;
    }
  }
  return taken;
}

function paintFree(map, runs, width, id) {
  for (let at = 0; at < runs.length; at += 3) {
    const end = runs[at] * width + runs[at + 2];
    for (let pixel = runs[at] * width + runs[at + 1]; pixel < end; pixel += 1) {
      if (map[pixel] === 0) map[pixel] = id;
    }
  }
}

function addBoxes(map, segments, height, width) {
  const boxes = segments.map(() => [width, height, 0, 0]);
  for (let y = 0, at = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, at += 1) {
      if (map[at] === 0) continue;
      const box = boxes[map[at] - 1];
      if (x < box[0]) box[0] = x;
      if (y < box[1]) box[1] = y;
      if (x >= box[2]) box[2] = x + 1;
      box[3] = y + 1;
    }
  }
  segments.forEach((segment, place) => {
    segment.box = boxes[place];
  });
}
