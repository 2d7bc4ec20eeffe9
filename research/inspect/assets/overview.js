// All heads, small: by layer, or in the order of a measure.
const grid = document.getElementById("grid");
const HEADINGS = { cross: "Cross-attention", pooling: "Pooling", self: "Self-attention" };
const tiles = []; // {map, head, cell, canvas, caption, matrix}

const measureNames = [...new Set(MAPS.flatMap((map) => Object.keys(map.measures)))];
const measured = (tile, name) => own(MAPS[tile.map].measures, name)?.[tile.head] ?? null;

function rangeOf(name) {
  const values = MAPS.flatMap((map) => own(map.measures, name) || []).filter((v) => v !== null);
  return [Math.min(...values), Math.max(...values)];
}

function makeTile(map, head, matrix) {
  const cell = create("button", "", { type: "button", role: "gridcell", class: "tile", tabindex: "-1" });
  const canvas = create("canvas", "", { "aria-hidden": "true" });
  const caption = create("span");
  cell.append(canvas, caption);
  cell.addEventListener("click", () => choose(map, head));
  return { map, head, cell, canvas, caption, matrix };
}

async function makeTiles() {
  const small = await Promise.all(MAPS.map((_, i) => loadSmall(i)));
  small.forEach((matrices, i) => tiles.push(...matrices.map((matrix, j) => makeTile(i, j, matrix))));
  const most = Math.max(...MAPS.map((map) => map.shape[0]));
  grid.style.setProperty("--tile", `${most <= 4 ? 80 : most <= 8 ? 56 : most <= 12 ? 36 : 28}px`);
  const letters = Math.max(...MAPS.map((map) => [...map.name].length));
  grid.style.setProperty("--label", `${Math.min(7, 0.46 * letters + 0.3)}rem`);
}

function paintTiles() {
  for (const { matrix, canvas } of tiles) {
    const image = picture(levels(matrix, state.scale, state.relative), matrix.signed, allOf(matrix), 64, 64);
    canvas.width = image.width;
    canvas.height = image.height;
    canvas.getContext("2d").putImageData(image, 0, 0);
  }
}

function captions() {
  const name = state.measure;
  const [low, high] = name ? rangeOf(name) : [0, 0];
  for (const tile of tiles) {
    const value = name ? measured(tile, name) : null;
    const { back, text } = cssOf(value === null ? 0 : high > low ? (value - low) / (high - low) : 0.5, false);
    tile.caption.textContent = name ? short(value) : "";
    tile.caption.style.backgroundColor = value === null ? "" : back;
    tile.caption.style.color = value === null ? "" : text;
    const said = name ? `, ${name} ${format(value)}` : "";
    tile.cell.setAttribute("aria-label", `${MAPS[tile.map].name}, ${headOf(tile.map, tile.head)}${said}`);
    tile.cell.title = `${MAPS[tile.map].name} · ${headOf(tile.map, tile.head)}${said}`;
  }
}

// Two digits are what fits under a small map.
const short = (value) => (value === null ? "–" : format(Number(value.toPrecision(2))));

function arrange() {
  const name = state.measure;
  grid.replaceChildren();
  const flat = state.sorted && name;
  grid.classList.toggle("flat", Boolean(flat));
  if (flat) {
    const value = (tile) => measured(tile, name) ?? -Infinity;
    const line = create("div", "", { role: "row", class: "tiles" });
    line.append(...[...tiles].sort((a, b) => value(b) - value(a)).map((tile) => tile.cell));
    grid.append(line);
    return;
  }
  MAPS.forEach((map, i) => {
    if (map.kind !== MAPS[i - 1]?.kind || map.rows !== MAPS[i - 1]?.rows) {
      const over = map.rows === map.columns ? `over ${map.rows}` : `${map.rows} reads ${map.columns}`;
      grid.append(create("p", `${HEADINGS[map.kind]} · ${over}`, { class: "kind", role: "presentation" }));
    }
    const row = create("div", "", { role: "row", class: "layer" });
    const line = create("div", "", { class: "tiles", role: "presentation" });
    line.append(...tiles.filter((tile) => tile.map === i).map((tile) => tile.cell));
    row.append(create("span", map.name, { role: "rowheader", title: map.name }), line);
    grid.append(row);
  });
}

const tileOf = (map, head) => tiles.find((tile) => tile.map === map && tile.head === head);

function markChosen() {
  for (const tile of tiles) {
    const chosen = tile.map === state.map && tile.head === state.head;
    tile.cell.setAttribute("aria-selected", String(chosen));
    tile.cell.tabIndex = chosen ? 0 : -1;
  }
}

// The tile that lies next in a direction, on the page as it is laid out.
function neighbour(from, key) {
  const shown = [...grid.querySelectorAll(".tile")];
  const at = shown.indexOf(from);
  if (key === "Home") return shown[0];
  if (key === "End") return shown.at(-1);
  if (key === "ArrowLeft" || key === "ArrowRight") return shown[at + (key === "ArrowLeft" ? -1 : 1)];
  const here = from.getBoundingClientRect();
  const way = key === "ArrowUp" ? -1 : 1;
  const places = shown.map((cell) => ({ cell, box: cell.getBoundingClientRect() }));
  const beyond = places.filter(({ box }) => way * (box.top - here.top) > 2);
  const nearest = Math.min(...beyond.map(({ box }) => way * (box.top - here.top)));
  const line = beyond.filter(({ box }) => way * (box.top - here.top) < nearest + 2);
  const away = ({ box }) => Math.abs(box.left - here.left);
  return line.sort((a, b) => away(a) - away(b))[0]?.cell;
}

grid.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    document.getElementById("marks").focus();
  }
  if (!/^(Arrow|Home|End)/.test(event.key)) return;
  event.preventDefault();
  // Not from the chosen head: it may still be being decoded when the next key comes.
  const next = neighbour(event.target, event.key);
  const tile = tiles.find(({ cell }) => cell === next);
  if (!tile) return;
  tile.cell.focus();
  choose(tile.map, tile.head);
});

onChange((changed) => {
  if (changed("measure", "sorted")) arrange();
  if (changed("measure", "theme")) captions();
  if (changed("scale", "relative", "theme")) paintTiles();
  if (changed("map", "head")) markChosen();
});
