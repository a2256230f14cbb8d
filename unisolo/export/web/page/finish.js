// From the graph's soft masks at a quarter of its input to masks and boxes in pixels of the
// original image: what `unisolo.ops.masks` and `unisolo.ops.panoptic` do in Python.
//
// A mask is an Int32Array of runs: y, first x, end x, y, first x, end x, ... row by row.

/**
 * The two resizes of the package (to the padded input, cut, to the original image) joined: each
 * output place reads three neighbouring cells.
 * @param {number} cells Cells along this axis, at least 3.
 * @returns {{base: Int32Array, weights: Float64Array}} first cell and three weights of each place
 */
export function joinedTaps(cells, padded, valid, size) {
  const base = new Int32Array(size);
  const weights = new Float64Array(size * 3);
  for (let place = 0; place < size; place += 1) {
    const [pixel, next, share] = source(place, valid, size);
    const [cell] = source(pixel, cells, padded);
    const start = Math.min(cell, cells - 3);
    base[place] = start;
    for (const [at, part] of [[pixel, 1 - share], [next, share]]) {
      const [low, high, inner] = source(at, cells, padded);
      weights[place * 3 + low - start] += part * (1 - inner);
      weights[place * 3 + high - start] += part * inner;
    }
  }
  return { base, weights };
}

/** Where a bilinear resize (align_corners=False) reads: two places and the share of the second. */
function source(place, size, newSize) {
  const scale = Math.fround(size / newSize);
  const at = Math.max(Math.fround(Math.fround(scale * (place + 0.5)) - 0.5), 0);
  const low = Math.min(Math.floor(at), size - 1);
  return [low, Math.min(low + 1, size - 1), at - low];
}

/**
 * One mask at the size of the original image.
 * @param {Float32Array} probs All masks of the graph, [places, cells high, cells wide].
 * @param {number} index Which of them.
 * @param {object} frame From `makeFrame`.
 * @returns {{runs: Int32Array, area: number, box: number[]}} box: x1, y1, x2, y2, half-open
 */
export function finishMask(probs, index, frame, threshold) {
  const { high, wide, rows, columns, height, width } = frame;
  const offset = index * high * wide;
  const cut = Math.fround(threshold);
  const extent = extentAbove(probs, offset, high, wide, cut);
  const none = { runs: new Int32Array(0), area: 0, box: [0, 0, 0, 0] };
  if (extent === null) return none;
  // Weights sum to 1, so a pixel lies above the threshold only if a cell that it reads does.
  const [firstRow, endRow] = reached(rows.base, extent.top, extent.bottom);
  const [firstColumn, endColumn] = reached(columns.base, extent.left, extent.right);
  const fromCell = Math.max(extent.left - 2, 0);
  const endCell = Math.min(extent.right + 3, wide);
  const line = new Float64Array(wide);
  const runs = [];
  let area = 0;
  const box = [width, height, 0, 0];
  for (let y = firstRow; y < endRow; y += 1) {
    blendRows(line, probs, offset + rows.base[y] * wide, wide, rows.weights, y, fromCell, endCell);
    let start = -1;
    for (let x = firstColumn; x <= endColumn; x += 1) {
      const inside = x < endColumn && valueAt(line, columns, x) > cut;
      if (inside && start < 0) start = x;
      if (!inside && start >= 0) {
        runs.push(y, start, x);
        area += x - start;
        box[0] = Math.min(box[0], start);
        box[1] = Math.min(box[1], y);
        box[2] = Math.max(box[2], x);
        box[3] = y + 1;
        start = -1;
      }
    }
  }
  return area ? { runs: Int32Array.from(runs), area, box } : none;
}

/** What all maps of one image share: sizes of the cells and the original, and how to read them. */
export function makeFrame(stride, padded, valid, height, width) {
  const [high, wide] = padded.map((side) => side / stride);
  return {
    high,
    wide,
    height,
    width,
    rows: joinedTaps(high, padded[0], valid[0], height),
    columns: joinedTaps(wide, padded[1], valid[1], width),
  };
}

/**
 * Most likely stuff index of every pixel of the original image.
 * @param {Float32Array} logits [channels, cells high, cells wide]; the last channel is "any thing"
 * @returns {Uint16Array} [height, width]
 */
export function finishStuff(logits, channels, frame) {
  const { high, wide, rows, columns, height, width } = frame;
  const plane = high * wide;
  const alike = whereAlike(logits, channels, high, wide);
  const out = new Uint16Array(height * width);
  const lines = Array.from({ length: channels }, () => new Float64Array(wide));
  for (let y = 0; y < height; y += 1) {
    const cellRow = rows.base[y] * wide;
    let blended = false;
    for (let x = 0; x < width; x += 1) {
      let best = alike[cellRow + columns.base[x]];
      if (best < 0) {
        if (!blended) {
          lines.forEach((line, channel) => {
            blendRows(line, logits, channel * plane + cellRow, wide, rows.weights, y, 0, wide);
          });
          blended = true;
        }
        best = 0;
        let most = -Infinity;
        for (let channel = 0; channel < channels; channel += 1) {
          const value = valueAt(lines[channel], columns, x);
          if (value > most) {
            most = value;
            best = channel;
          }
        }
      }
      out[y * width + x] = best;
    }
  }
  return out;
}

/**
 * The winning channel where all nine cells that a pixel reads agree on it, else -1: what wins in
 * every cell wins between them too, so most pixels need no interpolation.
 */
function whereAlike(logits, channels, high, wide) {
  const plane = high * wide;
  const winner = new Int16Array(plane);
  for (let cell = 0; cell < plane; cell += 1) {
    let most = -Infinity;
    for (let channel = 0; channel < channels; channel += 1) {
      if (logits[channel * plane + cell] > most) {
        most = logits[channel * plane + cell];
        winner[cell] = channel;
      }
    }
  }
  const alike = new Int16Array(plane).fill(-1);
  for (let y = 0; y + 2 < high; y += 1) {
    for (let x = 0; x + 2 < wide; x += 1) {
      const wanted = winner[y * wide + x];
      let same = true;
      for (let down = 0; down < 3 && same; down += 1) {
        const at = (y + down) * wide + x;
        same = winner[at] === wanted && winner[at + 1] === wanted && winner[at + 2] === wanted;
      }
      if (same) alike[y * wide + x] = wanted;
    }
  }
  return alike;
}

function blendRows(line, maps, start, wide, weights, y, from, end) {
  const [first, second, third] = [weights[y * 3], weights[y * 3 + 1], weights[y * 3 + 2]];
  for (let cell = from, at = start + from; cell < end; cell += 1, at += 1) {
    line[cell] = first * maps[at] + second * maps[at + wide] + third * maps[at + 2 * wide];
  }
}

function valueAt(line, { base, weights }, x) {
  const cell = base[x];
  const at = x * 3;
  return (
    weights[at] * line[cell] + weights[at + 1] * line[cell + 1] + weights[at + 2] * line[cell + 2]
  );
}

/** Inclusive extent of the cells above a threshold; null where there is none. */
function extentAbove(maps, offset, high, wide, threshold) {
  const extent = { top: high, bottom: -1, left: wide, right: -1 };
  for (let y = 0; y < high; y += 1) {
    for (let x = 0; x < wide; x += 1) {
      if (maps[offset + y * wide + x] > threshold) {
        if (y < extent.top) extent.top = y;
        extent.bottom = y;
        if (x < extent.left) extent.left = x;
        if (x > extent.right) extent.right = x;
      }
    }
  }
  return extent.bottom < 0 ? null : extent;
}

/** First and end of the output places that read a cell of low..high; bases never fall. */
function reached(base, low, high) {
  let first = 0;
  while (first < base.length && base[first] + 2 < low) first += 1;
  let end = first;
  while (end < base.length && base[end] <= high) end += 1;
  return [first, end];
}
