// From pixels of any size to the two inputs of the graph, with the resizes of the Python package:
// a canvas' own resize differs between browsers, and from what the model was trained on.

/**
 * Size after a resize that keeps the aspect ratio; `unisolo.data.transforms.resized_size`.
 * @returns {[number, number]} [height, width]
 */
export function resizedSize(height, width, short, long) {
  const scale = Math.min(long / Math.max(height, width), short / Math.min(height, width));
  const side = (length) => Math.max(Math.floor(length * scale + 0.5), 1);
  return [side(height), side(width)];
}

/**
 * The graph's input: resized, channels first, padded with 0 at the bottom and right.
 * @param {Uint8Array} rgb [height, width, 3]
 * @param {object} rule `input` of facts.json
 * @returns {{data: Uint8Array, padded: number[], valid: number[]}} sizes are [height, width]
 */
export function modelInput(rgb, height, width, rule) {
  const valid = resizedSize(height, width, rule.image_size, rule.max_size);
  const padded = rule.fixed ?? valid.map((side) => Math.ceil(side / rule.divisor) * rule.divisor);
  if (valid[0] > padded[0] || valid[1] > padded[1]) {
    throw new Error(
      `this model takes images of ${padded[1]} × ${padded[0]} pixels, and this one becomes ` +
        `${valid[1]} × ${valid[0]}; it has to be exported without --fixed`,
    );
  }
  const resize = rule.resize === "opencv" ? resizeOpencv : resizeTorch;
  const pixels = resize(rgb, height, width, valid[0], valid[1]);
  const data = new Uint8Array(3 * padded[0] * padded[1]);
  for (let channel = 0; channel < 3; channel += 1) {
    for (let y = 0; y < valid[0]; y += 1) {
      let to = (channel * padded[0] + y) * padded[1];
      let from = y * valid[1] * 3 + channel;
      for (let x = 0; x < valid[1]; x += 1, from += 3) data[to++] = pixels[from];
    }
  }
  return { data, padded, valid };
}

/**
 * Bilinear with antialias as torch has it for bytes: one triangle filter per axis in fixed point,
 * rows first, rounded to bytes in between.
 * @param {Uint8Array} rgb [height, width, 3]
 * @returns {Uint8Array} [newHeight, newWidth, 3]
 */
export function resizeTorch(rgb, height, width, newHeight, newWidth) {
  let pixels = rgb;
  if (newWidth !== width) pixels = filterRows(pixels, height, width, triangle(width, newWidth));
  if (newHeight !== height) {
    pixels = filterColumns(pixels, newWidth, triangle(height, newHeight));
  }
  return pixels;
}

/** First source place, number of places and integer weights of each output place. */
function triangle(size, newSize) {
  const scale = size / newSize;
  const support = Math.max(scale, 1);
  const most = Math.ceil(support) * 2 + 1;
  const starts = new Int32Array(newSize);
  const counts = new Int32Array(newSize);
  const exact = new Float64Array(newSize * most);
  let largest = 0;
  for (let place = 0; place < newSize; place += 1) {
    const centre = scale * (place + 0.5);
    const start = Math.max(Math.trunc(centre - support + 0.5), 0);
    const count = Math.min(Math.trunc(centre + support + 0.5), size) - start;
    let total = 0;
    for (let tap = 0; tap < count; tap += 1) {
      const far = Math.abs((tap + start - centre + 0.5) / support);
      const weight = far < 1 ? 1 - far : 0;
      exact[place * most + tap] = weight;
      total += weight;
    }
    for (let tap = 0; tap < count; tap += 1) {
      exact[place * most + tap] /= total;
      largest = Math.max(largest, exact[place * most + tap]);
    }
    starts[place] = start;
    counts[place] = count;
  }
  let bits = 0; // as many as 16-bit weights can hold
  while (bits < 22 && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits += 1;
  const weights = Int32Array.from(exact, (weight) => Math.trunc(0.5 + weight * 2 ** bits));
  return { starts, counts, weights, most, bits, newSize };
}

function filterRows(pixels, height, width, { starts, counts, weights, most, bits, newSize }) {
  const out = new Uint8Array(height * newSize * 3);
  const half = 1 << (bits - 1);
  for (let x = 0; x < newSize; x += 1) {
    const count = counts[x];
    for (let y = 0; y < height; y += 1) {
      let from = (y * width + starts[x]) * 3;
      let red = half;
      let green = half;
      let blue = half;
      for (let tap = 0, at = x * most; tap < count; tap += 1, at += 1, from += 3) {
        const weight = weights[at];
        red += weight * pixels[from];
        green += weight * pixels[from + 1];
        blue += weight * pixels[from + 2];
      }
      const to = (y * newSize + x) * 3;
      out[to] = clamped(red >> bits);
      out[to + 1] = clamped(green >> bits);
      out[to + 2] = clamped(blue >> bits);
    }
  }
  return out;
}

function filterColumns(pixels, width, { starts, counts, weights, most, bits, newSize }) {
  const row = width * 3;
  const out = new Uint8Array(newSize * row);
  const sums = new Int32Array(row);
  for (let y = 0; y < newSize; y += 1) {
    sums.fill(1 << (bits - 1));
    for (let tap = 0; tap < counts[y]; tap += 1) {
      const weight = weights[y * most + tap];
      const from = (starts[y] + tap) * row;
      for (let place = 0; place < row; place += 1) sums[place] += weight * pixels[from + place];
    }
    for (let place = 0; place < row; place += 1) {
      out[y * row + place] = clamped(sums[place] >> bits);
    }
  }
  return out;
}

function clamped(value) {
  return value > 255 ? 255 : value;
}

/**
 * OpenCV's bilinear on bytes (no antialias), for weights that were trained with it.
 * @param {Uint8Array} rgb [height, width, 3]
 * @returns {Uint8Array} [newHeight, newWidth, 3]
 */
export function resizeOpencv(rgb, height, width, newHeight, newWidth) {
  if (height === newHeight && width === newWidth) return rgb;
  const columns = twoTaps(width, newWidth);
  const rows = twoTaps(height, newHeight);
  const out = new Uint8Array(newHeight * newWidth * 3);
  for (let y = 0; y < newHeight; y += 1) {
    const above = rows.first[y] * width;
    const below = Math.min(rows.first[y] + 1, height - 1) * width;
    const down = rows.weight[y];
    for (let x = 0; x < newWidth; x += 1) {
      const left = columns.first[x];
      const right = Math.min(left + 1, width - 1);
      const across = columns.weight[x];
      for (let channel = 0; channel < 3; channel += 1) {
        const value = (at) => rgb[at * 3 + channel];
        const top = value(above + left) * (256 - across) + value(above + right) * across;
        const bottom = value(below + left) * (256 - across) + value(below + right) * across;
        out[(y * newWidth + x) * 3 + channel] =
          (top * (256 - down) + bottom * down + 32768) >> 16;
      }
    }
  }
  return out;
}

/** First source place, and the weight of the next one in 1/256. */
function twoTaps(size, newSize) {
  const first = new Int32Array(newSize);
  const weight = new Int32Array(newSize);
  const scale = size / newSize;
  for (let place = 0; place < newSize; place += 1) {
    const at = Math.min(Math.max((place + 0.5) * scale - 0.5, 0), size - 1);
    first[place] = Math.floor(at);
    weight[place] = Math.round((at - first[place]) * 256);
  }
  return { first, weight };
}
