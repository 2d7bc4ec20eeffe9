"use strict";

// Tables sort by their headings; cells say by what in data-value, and cells without one go last.
function sortBy(heading) {
  const row = heading.parentElement;
  const table = heading.closest("table");
  const column = [...row.children].indexOf(heading);
  const up = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of row.children) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = (line) => line.children[column].dataset.value;
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    const [m, n] = [toNumber(x), toNumber(y)];
    const order = Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m < n ? -1 : m > n ? 1 : 0;
    return up ? order : -order;
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(compare));
}

// Python writes infinity as "inf".
function toNumber(text) {
  return text === "inf" ? Infinity : text === "" ? NaN : Number(text);
}

for (const button of document.querySelectorAll("table.sortable thead button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

// An arm's switch brings it forward in every chart and table; several may be on.
function bringForward() {
  const on = [...document.querySelectorAll('.chip[aria-pressed="true"]')].map((c) => c.dataset.arm);
  document.body.toggleAttribute("data-focus", on.length > 0);
  for (const part of document.querySelectorAll("figure [data-arm], tbody tr[data-arm]")) {
    part.classList.toggle("front", on.includes(part.dataset.arm));
  }
}

for (const chip of document.querySelectorAll(".chip")) {
  chip.addEventListener("click", () => {
    chip.setAttribute("aria-pressed", chip.getAttribute("aria-pressed") !== "true");
    bringForward();
  });
}

// With many arms: those whose name has the text come forward, and only their switches are shown.
const find = document.getElementById("find");
find?.addEventListener("input", () => {
  const wanted = find.value.trim().toLowerCase();
  for (const chip of document.querySelectorAll(".chip")) {
    const found = chip.textContent.toLowerCase().includes(wanted);
    chip.hidden = !found;
    chip.setAttribute("aria-pressed", found && wanted !== "");
  }
  bringForward();
});

// Hovering over a line or a dot says whose it is.
const names = new Map([...document.querySelectorAll(".chip")].map((c) => [c.dataset.arm, c.textContent]));
for (const part of document.querySelectorAll("figure [data-arm]")) {
  const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
  title.textContent = names.get(part.dataset.arm).trim();
  part.prepend(title);
}

document.querySelector(".theme").addEventListener("click", () => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
});

// Paper cannot be clicked.
addEventListener("beforeprint", () => {
  for (const closed of document.querySelectorAll("details")) closed.open = true;
});
