// About the chosen head: its name, its measures among those of all heads, its greatest weights.
const side = document.getElementById("side");
const LISTED = 8;

function paintHead() {
  const map = MAPS[state.map];
  document.getElementById("chosen").textContent = `${map.name} · ${headOf(state.map, state.head)}`;
  const [tall, wide] = map.pool;
  const [, rows, columns] = map.shape;
  const notes = [map.note, `${rows} × ${columns}: rows are ${map.rows}, columns ${map.columns}.`];
  if (tall * wide > 1) {
    notes.push(`Pooled for this page: a cell shows the greatest of up to ${tall} × ${wide} weights.`);
  }
  document.getElementById("about").textContent = notes.filter(Boolean).join(" · ");
  marks.setAttribute("aria-label", `Weights of ${map.name}, ${headOf(state.map, state.head)}: arrow keys move over cells`);
}

function paintMeasures() {
  const names = Object.keys(MAPS[state.map].measures);
  const list = create("dl", "", { class: "measures" });
  for (const name of names) {
    const mine = MAPS[state.map].measures[name][state.head];
    const row = create("div");
    const strip = create("canvas", "", { "aria-hidden": "true" });
    const term = create("dt", name);
    const place = create("dd", format(mine), { class: "number" });
    const values = tiles.map((tile) => measured(tile, name)).filter((v) => v !== null);
    const above = values.filter((v) => v > mine).length;
    const rank = create("dd", mine === null ? "" : `${above + 1} of ${values.length}`, { class: "rank" });
    row.append(term, place, rank, strip);
    list.append(row);
    paintStrip(strip, values, mine, rangeOf(name));
  }
  const measures = create("section");
  measures.append(create("h3", "Measures, among all heads"), list);
  const weights = create("section");
  weights.append(create("h3", "", { id: "listed" }), create("ol", "", { id: "greatest" }));
  side.replaceChildren(...(names.length ? [measures] : []), weights);
}

// A tick for each head, the chosen one's in front.
function paintStrip(strip, values, mine, [low, high]) {
  const [wide, tall] = [400, 24];
  Object.assign(strip, { width: wide, height: tall });
  const context = strip.getContext("2d");
  const colours = inks();
  const at = (value) => 4 + (high > low ? (value - low) / (high - low) : 0.5) * (wide - 8);
  context.globalAlpha = 0.45;
  context.fillStyle = colours.muted;
  for (const value of values) context.fillRect(at(value) - 1, 6, 2, tall - 12);
  if (mine === null) return;
  context.globalAlpha = 1;
  context.fillStyle = colours.accent;
  context.fillRect(at(mine) - 3, 0, 6, tall);
}

// The greatest weights, in magnitude, of what is pointed at: [row, column, value], greatest first.
function greatest() {
  const { matrix } = state;
  const { row, column } = chosenLine();
  const [top, bottom] = row === undefined ? [0, matrix.rows] : [row, row + 1];
  const [left, right] = column === undefined ? [0, matrix.columns] : [column, column + 1];
  const best = [];
  for (let r = top; r < bottom; r++) {
    for (let c = left; c < right; c++) {
      const value = matrix.value(r, c);
      const weight = Math.abs(value);
      if (!(weight > 0) || (best.length === LISTED && weight <= Math.abs(best[LISTED - 1][2]))) continue;
      const place = best.findIndex(([, , other]) => Math.abs(other) < weight);
      best.splice(place < 0 ? best.length : place, 0, [r, c, value]);
      best.length = Math.min(best.length, LISTED);
    }
  }
  return best;
}

// The row or the column, not both, whose weights are listed and colour the tokens.
function chosenLine() {
  const { row, column } = pointed();
  if (row !== undefined && (column === undefined || state.direction === "reads")) return { row };
  return column === undefined ? {} : { column };
}

function paintGreatest() {
  const { axes } = frame;
  const line = chosenLine();
  const title = line.row !== undefined ? `${describe(axes.row, line.row)} reads`
    : line.column !== undefined ? `${describe(axes.column, line.column)} is read by` : "Greatest weights";
  document.getElementById("listed").textContent = title;
  const rows = greatest().map(([row, column, value]) => {
    const texts = line.row !== undefined ? [brief(axes.column, column)]
      : line.column !== undefined ? [brief(axes.row, row)] : [brief(axes.row, row), brief(axes.column, column)];
    const item = create("li");
    const button = create("button", texts.join(" → "), { type: "button" });
    button.addEventListener("click", () => {
      change({ held: { row, column } });
      reveal({ row, column });
    });
    const bar = create("span", "", { class: "amount" });
    bar.style.setProperty("--share", Math.abs(value) / state.matrix.greatest);
    item.append(button, create("span", format(value), { class: "number" }), bar);
    return item;
  });
  if (!rows.length) rows.push(create("li", "nothing"));
  document.getElementById("greatest").replaceChildren(...rows);
}

onChange((changed) => {
  if (!state.matrix) return;
  if (changed("matrix")) paintHead();
  if (changed("matrix", "theme")) paintMeasures();
  if (changed("matrix", "theme", "focus", "held", "direction")) paintGreatest();
});
