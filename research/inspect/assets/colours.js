// Colours of weights: from what the page looks like at zero to what stands out most. Magma, lightness
// in equal steps, the light end towards white in the light theme; for signed weights blue and red
// around nothing; grey for what is heard. Between the colours of a table, linear.
const TABLES = {
  light: ["#ffffff", "#fee3b0", "#feb97e", "#fb8761", "#f05f5e", "#d5446d", "#b3367a", "#902a81", "#6d1d81", "#4c117a", "#271258"],
  dark: ["#1b1f24", "#251a44", "#3f1568", "#611a80", "#832681", "#a5317e", "#c83e73", "#e95462", "#fa7d5e", "#fea973", "#fcfdbf"],
  lightSigned: ["#10457e", "#2b73b3", "#569fc9", "#9bc9e0", "#d4e6f1", "#ffffff", "#fdddcb", "#f5ac8b", "#dd7059", "#bd2d35", "#840924"],
  lightSound: ["#ffffff", "#1b1e23"],
  darkSound: ["#1b1f24", "#e8eaed"],
  darkSigned: ["#9eb0ff", "#62a6e0", "#3280a6", "#20526a", "#1c3340", "#1b1f24", "#3f1a10", "#61200b", "#964a36", "#ca7b71", "#ffadad"],
};
const NOTHING = { light: [203, 207, 212], dark: [74, 81, 90] };

function ramp(table) {
  const ends = table.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const colours = new Uint8ClampedArray(256 * 3);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (ends.length - 1);
    const k = Math.min(Math.floor(at), ends.length - 2);
    for (let c = 0; c < 3; c++) colours[3 * i + c] = ends[k][c] + (at - k) * (ends[k + 1][c] - ends[k][c]);
  }
  return colours;
}

const RAMPS = Object.fromEntries(Object.entries(TABLES).map(([name, table]) => [name, ramp(table)]));

let printing = false;

function theme() {
  if (printing) return "light";
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  return document.documentElement.dataset.theme || system;
}

const rampOf = (signed) => RAMPS[theme() + (signed ? "Signed" : "")];
const indexOf = (level, signed) => Math.round(signed ? 127.5 * (1 + level) : 255 * level);

// A level, 0 to 1 or -1 to 1, as CSS: of the background and of a text on it.
function cssOf(level, signed) {
  const [r, g, b] = rampOf(signed).subarray(3 * indexOf(level, signed));
  return { back: `rgb(${r} ${g} ${b})`, text: 0.3 * r + 0.59 * g + 0.11 * b > 140 ? "#000" : "#fff" };
}

// A function (row, column) -> level of a matrix, NaN where nothing is read.
function levels(matrix, scale, relative) {
  const limits = Float64Array.from(matrix.scales, (own) =>
    relative === "row" ? own : relative === "one" ? 1 : matrix.greatest);
  const root = scale === "sqrt";
  const factors = limits.map((limit, row) => {
    const share = limit > 0 ? matrix.scales[row] / limit : 0;
    return root ? Math.sqrt(share) : share;
  });
  return (row, column) => {
    const part = matrix.part(row, column);
    const level = (root ? part : part * Math.abs(part)) * factors[row];
    return level > 1 ? 1 : level < -1 ? -1 : level;
  };
}

// Cells of a window as an image of at most `wide` x `tall` pixels: a pixel shows the greatest of the
// cells under it.
function picture(level, signed, window, wide, tall, colours = rampOf(signed)) {
  const [w, h] = [Math.max(1, Math.min(window.columns, wide)), Math.max(1, Math.min(window.rows, tall))];
  const image = new ImageData(w, h);
  const nothing = NOTHING[theme()];
  for (let y = 0; y < h; y++) {
    const [top, bottom] = span(y, h, window.row, window.rows);
    for (let x = 0; x < w; x++) {
      const [left, right] = span(x, w, window.column, window.columns);
      let best = NaN;
      for (let row = top; row < bottom; row++) {
        for (let column = left; column < right; column++) {
          const one = level(row, column);
          if (!(Math.abs(one) <= Math.abs(best)) && !Number.isNaN(one)) best = one;
        }
      }
      const at = 4 * (y * w + x);
      const known = !Number.isNaN(best);
      const index = known ? 3 * indexOf(best, signed) : 0;
      for (let c = 0; c < 3; c++) image.data[at + c] = known ? colours[index + c] : nothing[c];
      image.data[at + 3] = 255;
    }
  }
  return image;
}

// The cells under pixel i of n, of `number` cells from `start`.
function span(i, n, start, number) {
  return [start + Math.floor((i * number) / n), start + Math.max(Math.ceil(((i + 1) * number) / n), 1)];
}
