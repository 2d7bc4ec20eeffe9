"use strict";

// What the file carries. research/inspect/payload.py says how matrices are written.
const DATA = JSON.parse(document.getElementById("data").textContent);
const MAPS = DATA.maps;
const MISSING = 255;
const KEPT = 24; // decoded heads

async function unpack(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

class Matrix {
  constructor(bytes, start, rows, columns, signed) {
    Object.assign(this, { rows, columns, signed });
    // A slice of its own: floats have to start at a multiple of four.
    this.scales = new Float32Array(bytes.slice(start, start + 4 * rows).buffer);
    this.codes = bytes.subarray(start + 4 * rows, start + rows * (4 + columns));
    this.greatest = this.scales.reduce((a, b) => Math.max(a, b), 0);
  }

  // Square root of the magnitude as a share of its row's greatest, with the sign.
  part(row, column) {
    const code = this.codes[row * this.columns + column];
    return code === MISSING ? NaN : this.signed ? (code - 127) / 127 : code / 254;
  }

  value(row, column) {
    const part = this.part(row, column);
    return part * Math.abs(part) * this.scales[row];
  }
}

// Names are anyone's: "constructor" is not to be found where nobody put it.
const own = (object, name) => (Object.hasOwn(object, name) ? object[name] : null);
const across = (length, by) => Math.ceil(length / by);
const heads = new Map();

// The weights of one head, decoded when first asked for.
function loadHead(map, head) {
  const id = `head-${map}-${head}`;
  const found = heads.get(id);
  heads.delete(id);
  const [, rows, columns] = MAPS[map].shape;
  const [tall, wide] = MAPS[map].pool;
  const loaded = found || unpack(id).then((bytes) =>
    new Matrix(bytes, 0, across(rows, tall), across(columns, wide), MAPS[map].signed));
  heads.set(id, loaded);
  if (heads.size > KEPT) heads.delete(heads.keys().next().value);
  return loaded;
}

// The small matrices of all heads of a map.
async function loadSmall(map) {
  const bytes = await unpack(`small-${map}`);
  const [number, rows, columns] = MAPS[map].shape;
  const [h, w] = [across(rows, MAPS[map].small[0]), across(columns, MAPS[map].small[1])];
  return Array.from({ length: number }, (_, i) =>
    new Matrix(bytes, i * h * (4 + w), h, w, MAPS[map].signed));
}

const headOf = (map, head) => `head ${MAPS[map].heads[head]}`;

// What a position of an axis is called.
function nameOf(axis, index, length) {
  if (axis === "audio") return `${(index * DATA.audio.state).toFixed(2)} s`;
  if (axis === "query") return length === 1 ? "query" : `query ${index}`;
  return DATA.axes[axis].names[index];
}

// The two axes of a map in the units of its cells.
function axesOf(map) {
  const [, rows, columns] = MAPS[map].shape;
  const axis = (name, length, pool) => ({
    axis: name,
    length,
    pool,
    cells: across(length, pool),
    name: (cell) => nameOf(name, cell * pool, length),
  });
  return {
    row: axis(MAPS[map].rows, rows, MAPS[map].pool[0]),
    column: axis(MAPS[map].columns, columns, MAPS[map].pool[1]),
  };
}

function format(value) {
  if (value === null || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return text.replace(/-/g, "−");
}
