// The large map: what is under the pointer, holding, zooming, keys.
const readout = document.getElementById("readout");
let frame = null;
let drag = null; // {x, y, toX, toY}

function cellAt(event) {
  const box = marks.getBoundingClientRect();
  const { window: view } = state;
  const column = Math.floor((event.clientX - box.left - frame.x) / frame.cell.wide) + view.column;
  const row = Math.floor((event.clientY - box.top - frame.y) / frame.cell.tall) + view.row;
  const focus = {};
  if (row >= view.row && row < view.row + view.rows) focus.row = row;
  if (column >= view.column && column < view.column + view.columns) focus.column = column;
  // Beside the map are labels; the corners are nothing.
  const above = event.clientY - box.top < frame.y;
  const beside = event.clientX - box.left < frame.x;
  if (focus.row === undefined && !above) delete focus.column;
  if (focus.column === undefined && !beside) delete focus.row;
  return focus;
}

const same = (a, b) => a.row === b.row && a.column === b.column;

function hold(focus) {
  change({ held: same(state.held, focus) ? {} : focus });
}

// "5 “cat”", or "20–23 “cat” …" where a cell stands for several.
function brief(axis, cell) {
  if (axis.axis === "audio") {
    const end = Math.min((cell + 1) * axis.pool, axis.length);
    return `${axis.name(cell).replace(" s", "")}–${nameOf("audio", end)}`;
  }
  if (axis.axis === "query") return axis.name(cell);
  const first = cell * axis.pool;
  const last = Math.min(first + axis.pool, axis.length) - 1;
  const name = axis.name(cell);
  const shown = name.length > 60 ? `${name.slice(0, 60)}…` : name;
  // Isolated, so that a name in a script that runs from right to left moves nothing else.
  return first === last ? `${first} “\u2068${shown}\u2069”` : `${first}–${last} “\u2068${shown}\u2069” …`;
}

const describe = (axis, cell) => (axis.axis === "query" ? "" : `${axis.axis} `) + brief(axis, cell);

function readoutText() {
  const { row, column } = pointed();
  const { axes } = frame;
  const reader = row === undefined ? "" : describe(axes.row, row);
  const source = column === undefined ? "" : describe(axes.column, column);
  if (reader && source) {
    const value = state.matrix.value(row, column);
    const most = axes.row.pool * axes.column.pool > 1 ? "at most " : "";
    return Number.isNaN(value) ? `${reader} reads nothing` : `${reader} reads ${source}: ${most}${format(value)}`;
  }
  if (reader) return `What ${reader} reads`;
  if (source) return `Who reads ${source}`;
  return "Point at a cell, a row’s or a column’s label, or a token; click to hold it.";
}

// Marks the row and the column that are pointed at, with their labels, over the map.
function paintMarks() {
  const context = size(marks, frame);
  const { row, column } = pointed();
  const { x, y, wide, tall, cell, axes } = frame;
  const colours = inks();
  const { window: view } = state;
  context.strokeStyle = colours.accent;
  context.lineWidth = 1.5;
  context.textBaseline = "middle";
  if (row >= view.row && row < view.row + view.rows) {
    const at = rowAt(frame, row);
    context.strokeRect(x - 1, at - cell.tall / 2 - 0.5, wide + 2, cell.tall + 1);
    plate(context, fit(context, axes.row.name(row), x - 10), x - 6, at, "right", colours);
  }
  if (column >= view.column && column < view.column + view.columns) {
    const at = columnAt(frame, column);
    const start = frame.heard ? 0 : y - 1;
    context.strokeRect(at - cell.wide / 2 - 0.5, start, cell.wide + 1, y + tall + 1 - start);
    const name = fit(context, axes.column.name(column), LABEL);
    if (frame.heard) plate(context, name, at, y + tall + 27, "center", colours);
    else plateSlanted(context, name, at, y - 8, colours);
  }
  if (drag && drag.moved) {
    context.setLineDash([4, 3]);
    context.strokeRect(drag.x, drag.y, drag.toX - drag.x, drag.toY - drag.y);
  }
}

function plate(context, text, x, y, align, colours) {
  const wide = context.measureText(text).width + 6;
  const left = align === "right" ? x - wide + 3 : align === "center" ? x - wide / 2 : x - 3;
  context.fillStyle = colours.accent;
  context.fillRect(left, y - 9, wide, 18);
  context.fillStyle = colours.card;
  context.textAlign = align;
  context.fillText(text, x, y);
}

function plateSlanted(context, text, x, y, colours) {
  context.save();
  context.translate(x, y);
  context.rotate(-SLANT);
  plate(context, text, 0, 0, "left", colours);
  context.restore();
}

// Zooms by a factor around the cell that is pointed at, or the middle.
function zoom(factor) {
  const { window: view, matrix } = state;
  const { row = view.row + view.rows / 2, column = view.column + view.columns / 2 } = pointed();
  const part = (from, number, at, all) => {
    const next = Math.max(1, Math.min(all, Math.round(number / factor) + (factor < 1 && number === 1 ? 1 : 0)));
    const start = Math.round(at - ((at - from) * next) / number);
    return [Math.max(0, Math.min(all - next, start)), next];
  };
  const [top, rows] = part(view.row, view.rows, row, matrix.rows);
  const [left, columns] = part(view.column, view.columns, column, matrix.columns);
  change({ window: { row: top, rows, column: left, columns } });
}

// Moves the window just as far as to show a cell.
function reveal({ row, column }) {
  const view = { ...state.window };
  if (row !== undefined) view.row = Math.max(row - view.rows + 1, Math.min(view.row, row));
  if (column !== undefined) view.column = Math.max(column - view.columns + 1, Math.min(view.column, column));
  if (view.row !== state.window.row || view.column !== state.window.column) change({ window: view });
}

function zoomInto({ x, y, toX, toY }) {
  const { window: view } = state;
  const part = (a, b, start, cell, from, number) => {
    const low = Math.max(0, Math.floor((Math.min(a, b) - start) / cell));
    const high = Math.min(number, Math.ceil((Math.max(a, b) - start) / cell));
    return [from + Math.min(low, number - 1), Math.max(1, high - low)];
  };
  const [row, rows] = part(y, toY, frame.y, frame.cell.tall, view.row, view.rows);
  const [column, columns] = part(x, toX, frame.x, frame.cell.wide, view.column, view.columns);
  change({ window: { row, rows, column, columns }, focus: {} });
}

marks.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  const [x, y] = [event.offsetX, event.offsetY];
  drag = { x, y, toX: x, toY: y, moved: false };
  marks.setPointerCapture(event.pointerId);
});
marks.addEventListener("pointermove", (event) => {
  if (drag) {
    Object.assign(drag, { toX: event.offsetX, toY: event.offsetY });
    drag.moved ||= Math.hypot(drag.toX - drag.x, drag.toY - drag.y) > 6;
  }
  const focus = cellAt(event);
  if (!same(focus, state.focus)) change({ focus });
  else if (drag) paintMarks();
});
marks.addEventListener("pointerup", (event) => {
  const done = drag;
  drag = null;
  if (done?.moved) zoomInto(done);
  else if (done && points(cellAt(event))) hold(cellAt(event));
});
marks.addEventListener("pointerleave", () => change({ focus: {} }));
marks.addEventListener("dblclick", () => change({ window: allOf(state.matrix), held: {} }));

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

marks.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { window: view, matrix } = state;
  if (ARROWS[event.key]) {
    event.preventDefault();
    const { row = view.row, column = view.column } = pointed();
    const started = points(pointed());
    const [down, right] = started ? ARROWS[event.key] : [0, 0];
    const clamp = (at, all) => Math.max(0, Math.min(all - 1, at));
    const held = { row: clamp(row + down, matrix.rows), column: clamp(column + right, matrix.columns) };
    change({ held, focus: {} });
    reveal(held);
  } else if (event.key === "+" || event.key === "=") zoom(2);
  else if (event.key === "-") zoom(0.5);
  else if (event.key === "0") change({ window: allOf(matrix) });
});

document.getElementById("in").addEventListener("click", () => zoom(2));
document.getElementById("out").addEventListener("click", () => zoom(0.5));
document.getElementById("whole").addEventListener("click", () => change({ window: allOf(state.matrix) }));

onChange((changed) => {
  if (!state.matrix) return;
  if (changed("matrix", "window", "scale", "relative", "theme", "width")) {
    frame = layout();
    paint(frame);
    paintMarks();
  } else if (changed("focus", "held")) paintMarks();
  if (changed("matrix", "focus", "held")) readout.textContent = readoutText();
});
