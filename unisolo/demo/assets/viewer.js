// Fills the viewer from the state that the server sends, and says what lies under the pointer.
const find = (name) => element.querySelector(".us-" + name);
const make = (tag, name, text) => {
  const node = document.createElement(tag);
  node.className = name;
  node.textContent = text ?? "";  // text, never markup: names come from a data set's file
  return node;
};
const percent = (share) => (share < 0.001 ? "< 0.1" : (share * 100).toFixed(1)) + " %";
let state = null;  // what is shown
let numbers = null;  // Uint32Array, the set of segments at each place of the hover map
let lit = -1;  // the segment that stands out

const dot = (color) => {
  const node = make("i", "us-dot");
  node.style.background = color;
  return node;
};

function light(index) {
  if (index === lit) return;
  lit = index;
  element.querySelectorAll("tbody tr").forEach((row, n) => row.classList.toggle("us-lit", n === index));
  const canvas = find("canvas");
  const [height, width] = state.hover.size;
  canvas.width = width;
  canvas.height = height;
  if (index < 0 || !numbers) return;
  const inside = state.hover.sets.map((set) => set.includes(index));
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  for (let place = 0; place < numbers.length; place++) {
    if (!inside[numbers[place]]) pixels.data[4 * place + 3] = 130;  // black over all the others
  }
  context.putImageData(pixels, 0, 0);
}

function under(event) {
  if (!state || !numbers) return [];
  const box = find("picture").getBoundingClientRect();
  const [height, width] = state.hover.size;
  const x = Math.floor(((event.clientX - box.left) / box.width) * width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * height);
  if (x < 0 || y < 0 || x >= width || y >= height) return [];
  return state.hover.sets[numbers[y * width + x]] ?? [];
}

function point(event) {
  const found = under(event);
  const tip = find("tip");
  tip.hidden = !found.length;
  light(found.length ? found[0] : -1);
  if (!found.length) return;
  tip.replaceChildren(...found.slice(0, 5).map((index) => {
    const segment = state.segments[index];
    const line = make("div", "us-tip-line");
    line.append(dot(segment.color), make("b", "", segment.name));
    if (segment.score !== null) line.append(make("span", "", segment.score.toFixed(2)));
    return line;
  }));
  const box = find("frame").getBoundingClientRect();
  const left = event.clientX - box.left;
  const flip = left > box.width - tip.offsetWidth - 24;
  tip.style.left = Math.max(0, flip ? left - tip.offsetWidth - 12 : left + 14) + "px";
  tip.style.top = Math.min(event.clientY - box.top + 14, box.height - tip.offsetHeight) + "px";
}

function leave() {
  find("tip").hidden = true;
  if (state) light(-1);
}

function legend() {
  const chips = state.categories.map((category) => {
    const chip = make("button", "us-chip");
    chip.type = "button";
    chip.setAttribute("aria-pressed", String(!category.hidden));
    chip.append(dot(category.color), make("span", "", category.name), make("small", "", category.count));
    chip.onclick = () => {
      category.hidden = !category.hidden;
      chip.setAttribute("aria-pressed", String(!category.hidden));
      const hidden = state.categories.filter((one) => one.hidden).map((one) => one.id);
      trigger("toggle", { hidden });
    };
    return chip;
  });
  find("legend").replaceChildren(...chips);
}

function table() {
  const rows = state.segments.map((segment, index) => {
    const row = document.createElement("tr");
    const name = make("td", "");
    name.append(dot(segment.color), segment.name);
    const score = make("td", "us-score", segment.score === null ? "–" : segment.score.toFixed(2));
    if (segment.score !== null) score.style.setProperty("--score", segment.score);
    row.append(name, score, make("td", "", percent(segment.share)));
    row.onpointerenter = () => light(index);
    row.onpointerleave = leave;
    return row;
  });
  element.querySelector("tbody").replaceChildren(...rows);
  find("scroll").hidden = !rows.length;
}

async function show(value) {
  find("empty").hidden = Boolean(value);
  find("found").hidden = !value || Boolean(value.problem);
  find("problem").hidden = !value?.problem;
  find("problem").textContent = value?.problem ?? "";
  if (!value || value.problem) {
    state = numbers = null;
    delete find("frame").dataset.shown;
    return;
  }
  // The old picture stays until the new one is here: no flicker while a slider moves.
  const image = new Image();
  image.src = value.base + "view.jpg";
  let hover;
  try {
    const answer = await fetch(value.base + "hover.bin");
    if (!answer.ok) return;  // a newer state is on its way
    hover = new Uint32Array(await answer.arrayBuffer());
    await image.decode();
  } catch {
    return;
  }
  if (value !== latest) return;
  leave();
  state = value;
  numbers = hover;
  lit = -1;
  const picture = find("picture");
  picture.src = image.src;
  picture.alt = value.name + ": " + value.summary;
  find("frame").style.setProperty("--ratio", value.size[1] / value.size[0]);
  const [height, width] = value.hover.size;
  Object.assign(find("canvas"), { width, height });
  find("summary").textContent = value.summary;
  find("note").textContent = value.note;
  find("note").hidden = !value.note;
  find("files").replaceChildren(...value.files.map((file) => {
    const link = make("a", "us-file", file.label);
    link.href = value.base + file.file;
    link.download = value.name + file.ending;
    return link;
  }));
  element.querySelector(".us-python pre").textContent = value.python;
  legend();
  table();
  find("frame").dataset.shown = value.base;
}

let latest = null;
const frame = find("frame");
frame.addEventListener("pointermove", point);
frame.addEventListener("pointerdown", point);
frame.addEventListener("pointerleave", leave);
watch("value", () => {
  latest = props.value;
  show(latest);
});
