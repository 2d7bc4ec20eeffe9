// What is chosen, and who wants to know when it changes.
const state = {
  map: 0,
  head: 0,
  matrix: null, // of the chosen head
  scale: "sqrt", // or "linear"
  relative: "head", // full colour is the greatest of the "head", of each "row", or weight "one"
  direction: "reads", // or "read": what a token shows where it could be both a row and a column
  measure: "",
  sorted: false,
  numbers: "", // colour tokens by these, in place of weights
  window: null, // {row, rows, column, columns}: the cells that are shown
  focus: {}, // {row, column}: cells under the pointer, either may be missing
  held: {}, // the same, clicked
  theme: "", // as it was last drawn
  width: 0, // of the map's place, in CSS pixels
};
const listeners = [];

// Calls listener(changed) after every change; changed(name, ...) says whether one of these did.
function onChange(listener) {
  listeners.push(listener);
}

function change(part) {
  const names = Object.keys(part).filter((name) => state[name] !== part[name]);
  Object.assign(state, part);
  const changed = (...asked) => asked.some((name) => names.includes(name));
  if (names.length) for (const listener of listeners) listener(changed);
}

const allOf = (matrix) => ({ row: 0, rows: matrix.rows, column: 0, columns: matrix.columns });
const points = (focus) => focus.row !== undefined || focus.column !== undefined;
const pointed = () => (points(state.focus) ? state.focus : state.held);

let wanted = 0;

// Shows a head. Window and held row stay where the next map has the same axes.
async function choose(map, head) {
  const mine = ++wanted;
  document.getElementById("view").setAttribute("aria-busy", "true");
  const matrix = await loadHead(map, head);
  if (mine !== wanted) return;
  const form = (i) => JSON.stringify([MAPS[i].rows, MAPS[i].columns, MAPS[i].shape.slice(1), MAPS[i].pool]);
  const stays = state.matrix && form(map) === form(state.map);
  const fresh = stays ? {} : { window: allOf(matrix), held: {} };
  change({ map, head, matrix, focus: {}, ...fresh });
  document.getElementById("view").setAttribute("aria-busy", "false");
}

function create(name, text = "", attributes = {}) {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
