// Where the map, its labels and the spectrogram lie on the canvas, and how they are painted.
const TYPE = "12px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const LABEL = 110; // pixels that a label may take
const LINE = 14; // pixels between labels
const LARGEST = 44; // pixels of a cell
const SPECTROGRAM = 76;
const SLANT = Math.PI / 3;

const base = document.getElementById("map");
const marks = document.getElementById("marks");
const pen = base.getContext("2d");
let sound = null; // bytes of the spectrogram

// Cuts a label to what fits. A text may be very long: no more of it is measured than could fit.
function fit(context, text, room) {
  let letters = [...text.slice(0, 80)];
  const whole = text.length <= 80;
  if (whole && context.measureText(text).width <= room) return text;
  while (letters.length > 1 && context.measureText(`${letters.join("")}…`).width > room) letters.pop();
  return `${letters.join("")}…`;
}

// Texts of one side, only as many as there is room for: [cell, text].
function labelsOf(axis, start, number, size, room) {
  const every = Math.max(1, Math.ceil(LINE / size));
  const labels = [];
  for (let i = 0; i < number; i += every) labels.push([start + i, fit(pen, axis.name(start + i), room)]);
  return labels;
}

const longest = (labels) => Math.max(0, ...labels.map(([, text]) => pen.measureText(text).width));

// The frame: {x, y, cell: {wide, tall}, wide, tall, width, height, rows, columns, heard}.
function layout() {
  const { window: view } = state;
  const axes = axesOf(state.map);
  const heard = axes.column.axis === "audio";
  const width = state.width;
  pen.font = TYPE;
  const room = Math.min(LABEL, width * 0.25);
  // Labels are thinned by the size of cells, which depends on the room that labels leave.
  const most = Math.max(280, Math.min(innerHeight * 0.72, 760));
  const left = Math.max(heard ? 74 : 0, longest(labelsOf(axes.row, view.row, view.rows, most / view.rows, room)) + 10);
  const slanted = heard ? [] : labelsOf(axes.column, view.column, view.columns, (width - left) / view.columns, room);
  const length = longest(slanted);
  const top = heard ? SPECTROGRAM + 10 : length * Math.sin(SLANT) + 16;
  const right = heard ? 12 : Math.max(12, length * Math.cos(SLANT));
  let wide = (width - left - right) / view.columns;
  if (!heard) wide = Math.min(wide, LARGEST);
  let tall = Math.min(wide, LARGEST, most / view.rows);
  const square = axes.row.axis === axes.column.axis;
  if (square && !heard) wide = Math.min(wide, Math.max(tall, most / view.rows));
  else tall = Math.max(tall, Math.min(view.rows < 4 ? 2 * LINE : LINE + 4, most / view.rows));
  const frame = { x: left, y: top, cell: { wide, tall }, wide: wide * view.columns, tall: tall * view.rows, heard, axes };
  frame.rows = labelsOf(axes.row, view.row, view.rows, tall, room);
  frame.columns = heard ? [] : labelsOf(axes.column, view.column, view.columns, wide, room);
  return { ...frame, width, height: Math.ceil(top + frame.tall + (heard ? 36 : 8)) };
}

// Colours of the page, as CSS gives them to the canvas.
function inks() {
  const style = getComputedStyle(base);
  return {
    ink: style.color,
    muted: style.caretColor,
    rule: style.borderTopColor,
    card: style.backgroundColor,
    accent: style.outlineColor,
  };
}

function size(canvas, frame) {
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(frame.width * ratio);
  canvas.height = Math.round(frame.height * ratio);
  canvas.style.height = `${frame.height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = TYPE;
  return context;
}

function paint(frame) {
  size(base, frame);
  const colours = inks();
  const ratio = devicePixelRatio || 1;
  const level = levels(state.matrix, state.scale, state.relative);
  const { x, y, wide, tall, cell } = frame;
  const image = picture(level, state.matrix.signed, state.window, Math.round(wide * ratio), Math.round(tall * ratio));
  stamp(image, x, y, wide, tall);
  if (cell.wide >= 10 && cell.tall >= 10) paintGaps(frame, colours.card);
  pen.strokeStyle = colours.rule;
  pen.lineWidth = 1;
  pen.strokeRect(x - 0.5, y - 0.5, wide + 1, tall + 1);
  pen.fillStyle = colours.ink;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const [row, text] of frame.rows) pen.fillText(text, x - 6, rowAt(frame, row));
  pen.textAlign = "left";
  for (const [column, text] of frame.columns) slant(pen, text, columnAt(frame, column), y - 8);
  if (frame.heard) paintSound(frame, colours);
}

const rowAt = (frame, row) => frame.y + (row - state.window.row + 0.5) * frame.cell.tall;
const columnAt = (frame, column) => frame.x + (column - state.window.column + 0.5) * frame.cell.wide;

function slant(context, text, x, y) {
  context.save();
  context.translate(x, y);
  context.rotate(-SLANT);
  context.fillText(text, 0, 0);
  context.restore();
}

function stamp(image, x, y, wide, tall) {
  const small = new OffscreenCanvas(image.width, image.height);
  small.getContext("2d").putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, x, y, wide, tall);
}

function paintGaps(frame, colour) {
  const { x, y, wide, tall, cell } = frame;
  pen.strokeStyle = colour;
  pen.lineWidth = 1;
  pen.beginPath();
  for (let at = x + cell.wide; at < x + wide - 1; at += cell.wide) pen.rect(at, y, 0, tall);
  for (let at = y + cell.tall; at < y + tall - 1; at += cell.tall) pen.rect(x, at, wide, 0);
  pen.stroke();
}

// Seconds that the window's columns begin and end at.
function heardSeconds(axis) {
  const each = DATA.audio.state * axis.pool;
  return [state.window.column * each, (state.window.column + state.window.columns) * each];
}

// The spectrogram above, on the time of the columns, and seconds below.
function paintSound(frame, colours) {
  const { x, wide } = frame;
  const { frames, bands, frame: each, seconds } = DATA.audio;
  const [from, to] = heardSeconds(frame.axes.column);
  const first = Math.floor(from / each);
  const number = Math.max(1, Math.min(frames, Math.ceil(to / each)) - first);
  const level = (row, column) => sound[column * bands + bands - 1 - row] / 255;
  const view = { row: 0, rows: bands, column: first, columns: number };
  const ratio = devicePixelRatio || 1;
  const grey = RAMPS[`${theme()}Sound`];
  const image = picture(level, false, view, Math.round(wide * ratio), Math.round(SPECTROGRAM * ratio), grey);
  const scale = wide / (to - from);
  pen.save();
  pen.beginPath();
  pen.rect(x, 0, wide, SPECTROGRAM);
  pen.clip();
  stamp(image, x + (first * each - from) * scale, 0, number * each * scale, SPECTROGRAM);
  pen.restore();
  pen.fillStyle = pen.strokeStyle = colours.muted;
  pen.textAlign = "right";
  pen.fillText("mel bands", x - 6, SPECTROGRAM / 2);
  const bottom = frame.y + frame.tall;
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60].find((s) => s * scale >= 55) || 120;
  pen.textAlign = "center";
  for (let i = Math.ceil(from / step); i * step <= Math.min(to, seconds) + 1e-9; i++) {
    const at = x + (i * step - from) * scale;
    pen.fillRect(at - 0.5, bottom + 1, 1, 4);
    pen.fillText(String(Number((i * step).toFixed(2))), at, bottom + 13);
  }
  pen.textAlign = "right";
  pen.fillText("seconds", x + wide, bottom + 28);
}
