"use strict";
// Everything is on the page without this script; it adds sorting, choosing and printing.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const numbers = "n" in head.dataset;
      const old = head.getAttribute("aria-sort");
      // Numbers are first wanted from the largest, names from the first letter.
      const down = old ? old === "ascending" : numbers;
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const value = (row) => {
        const cell = row.cells[column];
        return "v" in cell.dataset ? cell.dataset.v : cell.textContent.trim();
      };
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (numbers && (x === "" || y === "")) return (x === "") - (y === "");
        const order = numbers ? x - y : x.localeCompare(y);
        return down ? -order : order;
      });
      body.append(...rows);
    });
  });
}
const choice = document.getElementById("choice");
const place = document.getElementById("chosen");
if (choice && place) {
  const charts = document.querySelectorAll("#each figure");
  const show = () => place.replaceChildren(charts[choice.value].cloneNode(true));
  choice.addEventListener("change", show);
  show();
  choice.closest(".choose").hidden = false;
}
for (const pair of document.querySelectorAll(".pairs figure > div")) {
  const press = () => {
    pair.setAttribute("aria-pressed", String(pair.parentElement.classList.toggle("wide")));
  };
  pair.setAttribute("role", "button");
  pair.setAttribute("aria-pressed", "false");
  pair.tabIndex = 0;
  pair.title = "enlarge or reduce";
  pair.addEventListener("click", press);
  pair.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    press();
  });
}
const closed = [];
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) {
    if (part.id === "each-details") continue;
    part.open = true;
    closed.push(part);
  }
});
addEventListener("afterprint", () => {
  for (const part of closed.splice(0)) part.open = false;
});
