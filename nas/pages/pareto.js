"use strict";
// Draws what the page's data say. What is on a front, over a budget or a tie was decided by the program that
// wrote them. Every text is set as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 880, HEIGHT = 540, LEFT = 62, RIGHT = 18, TOP = 22, BOTTOM = 48, NEAR = 18;
  // Of the page's style, so that they follow its light or dark scheme.
  const [INK, MUTED, FAINT, GRID, PAPER, CHOSEN, BUDGET, PUBLISHED] =
    ["ink", "muted", "faint", "grid", "paper", "chosen", "budget", "published"].map((name) => `var(--${name})`);
  const KINDS = [
    ["front", "Pareto front"], ["dominated", "dominated"], ["over", "over budget"],
    ["early", "ended early"], ["priced", "priced only"], ["bars", "intervals"], ["published", "published"],
  ];
  const shown = new Set(KINDS.map(([kind]) => kind));
  let axis = data.axes[data.first], selected = null, spots = [];

  // -- small helpers -----------------------------------------------------------------------------------
  const byId = (id) => document.getElementById(id);
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }
  function shape(parent, tag, attributes, text) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }
  const digits = (value, count = 4) => String(Number(value.toPrecision(count)));
  const ap = (value) => value.toFixed(4);
  const interval = (pair) => (pair ? ` [${ap(pair[0])}, ${ap(pair[1])}]` : "");
  function cost(network, of) {
    const value = network.costs[of.key], told = network.latency[of.key];
    if (told) return `${digits(told[1])} ${of.unit} (${digits(told[0])} to ${digits(told[2])})`;
    return `${digits(value / of.scale)} ${of.unit}${of.latency ? ", upper end" : ""}`;
  }
  function copy(text, button) {
    const told = button.textContent;
    const say = (word) => {
      button.textContent = word;
      setTimeout(() => { button.textContent = told; }, 1200);
    };
    const byHand = () => {
      const area = element("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      say(done ? "copied" : "not copied");
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => say("copied"), byHand);
    else byHand();
  }

  // -- what a network is on this axis --------------------------------------------------------------------
  function kind(index) {
    const network = data.networks[index];
    if (network.status === "priced") return "priced";
    if (network.status === "early") return "early";
    if (axis.front.includes(index)) return "front";
    return axis.over.includes(index) ? "over" : "dominated";
  }
  const KIND_WORDS = {
    front: "on the Pareto front", dominated: "evaluated, dominated", over: "evaluated, over budget",
    early: "evaluation ended early: its AP is an estimate", priced: "priced only: over a bound of the search",
  };

  // -- the chart -----------------------------------------------------------------------------------------
  function ticks(low, high, about) {
    const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i += 1) found.push(i * step);
    return found;
  }
  function star(x, y, r) {
    const corners = [];
    for (let i = 0; i < 10; i += 1) {
      const angle = -Math.PI / 2 + (i * Math.PI) / 5, far = i % 2 ? r * 0.42 : r;
      corners.push(`${x + far * Math.cos(angle)},${y + far * Math.sin(angle)}`);
    }
    return corners.join(" ");
  }
  function mark(parent, which, x, y, colour) {
    const at = { cx: x, cy: y };
    if (which === "front") {
      return shape(parent, "circle", { ...at, r: 5.5, fill: colour, stroke: INK, "stroke-width": 1.4 });
    }
    if (which === "over") {
      return shape(parent, "circle", { ...at, r: 4, fill: "none", stroke: FAINT, "stroke-width": 1.4 });
    }
    if (which === "early") {
      const points = `${x},${y - 5} ${x + 4.5},${y + 3.5} ${x - 4.5},${y + 3.5}`;
      return shape(parent, "polygon", { points, fill: "none", stroke: colour, "stroke-width": 1.2 });
    }
    if (which === "priced") {
      return shape(parent, "line", { x1: x, x2: x, y1: y - 7, y2: y, stroke: FAINT, "stroke-width": 1.4 });
    }
    return shape(parent, "circle", { ...at, r: 4.2, fill: colour, "fill-opacity": 0.6 });
  }

  function draw() {
    const chart = byId("chart");
    chart.querySelector(":scope > svg")?.remove();
    const svg = shape(chart, "svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `AP against ${axis.label}`,
    });
    const [[left, right], [low, high]] = axis.limits;
    const x = (value) => LEFT + ((value - left) / (right - left)) * (WIDTH - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    const within = (value) => value >= left && value <= right;
    for (const value of ticks(left, right, 8)) {
      shape(svg, "line", { x1: x(value), x2: x(value), y1: TOP, y2: HEIGHT - BOTTOM, stroke: GRID });
      shape(svg, "text", { x: x(value), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, digits(value));
    }
    for (const value of ticks(low, high, 6)) {
      shape(svg, "line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), stroke: GRID });
      shape(svg, "text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, digits(value));
    }
    const bottom = HEIGHT - BOTTOM;
    shape(svg, "path", { d: `M${LEFT},${TOP}V${bottom}H${WIDTH - RIGHT}`, fill: "none", stroke: MUTED });
    shape(svg, "text", { class: "label", x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8,
      "text-anchor": "middle" }, axis.label);
    shape(svg, "text", { class: "label", x: 14, y: TOP - 8 }, "AP");

    const budgets = axis.budgets.filter((each) => within(each.value)).sort((a, b) => a.value - b.value);
    for (const [row, budget] of budgets.entries()) {
      const at = x(budget.value), far = at > WIDTH / 2;
      shape(svg, "line", { x1: at, x2: at, y1: TOP, y2: bottom, stroke: BUDGET, "stroke-dasharray": "6 4" });
      shape(svg, "text", { class: "budget", x: at + (far ? -5 : 5), y: TOP + 10 + 14 * (row % 4),
        "text-anchor": far ? "end" : "start" }, `budget ${budget.text}`);
    }
    if (shown.has("published")) {
      for (const each of axis.published.filter((one) => within(one.value))) {
        const at = x(each.value);
        shape(svg, "line", { x1: at, x2: at, y1: TOP, y2: bottom, stroke: PUBLISHED,
          "stroke-dasharray": "1.5 3" });
        shape(svg, "text", { class: "published", transform: `translate(${at - 4} ${bottom - 12}) rotate(-90)` },
          each.text);
        if (each.ap !== null && each.ap >= low && each.ap <= high) {
          shape(svg, "rect", { x: at - 4.5, y: y(each.ap) - 4.5, width: 9, height: 9, fill: "none",
            stroke: PUBLISHED, "stroke-width": 1.6 });
        }
      }
    }
    const place = (index) => {
      const network = data.networks[index];
      return [x(network.costs[axis.key] / axis.scale), network.ap === null ? bottom : y(network.ap)];
    };
    spots = data.networks.map((network, index) => index)
      .filter((index) => shown.has(kind(index)) && within(data.networks[index].costs[axis.key] / axis.scale));
    if (shown.has("front") && axis.front.length) {
      const stairs = axis.front.map(place);
      const end = Math.max(x(axis.reach), stairs.at(-1)[0]);
      stairs.forEach(([fromX, fromY], i) => {
        const [toX, toY] = stairs[i + 1] ?? [end, fromY];
        shape(svg, "path", { d: `M${fromX},${fromY}H${toX}V${toY}`, fill: "none", stroke: INK,
          "stroke-width": 1.6, "stroke-dasharray": axis.ties[i] ? "1.6 3" : "none" });
      });
    }
    for (const index of shown.has("bars") ? axis.barred.filter((each) => spots.includes(each)) : []) {
      const network = data.networks[index], [atX, atY] = place(index), told = network.latency[axis.key];
      const style = { stroke: INK, "stroke-opacity": Math.min(0.45, 10 / axis.barred.length) };
      if (network.interval) {
        shape(svg, "line", { x1: atX, x2: atX, y1: y(network.interval[0]), y2: y(network.interval[1]), ...style });
      }
      if (told) {
        shape(svg, "line", { x1: x(told[0]), x2: x(told[2]), y1: atY, y2: atY, ...style });
        shape(svg, "line", { x1: x(told[1]), x2: x(told[1]), y1: atY - 4, y2: atY + 4, ...style });
      }
    }
    const order = ["priced", "over", "early", "dominated", "front"];
    spots.sort((one, other) => order.indexOf(kind(one)) - order.indexOf(kind(other)));
    for (const index of spots) mark(svg, kind(index), ...place(index), data.networks[index].colour);
    for (const index of spots) {
      const network = data.networks[index], [atX, atY] = place(index);
      if (network.marks.length) {
        shape(svg, "polygon", { points: star(atX, atY, 11), fill: CHOSEN, stroke: PAPER });
        shape(svg, "text", { x: atX - 10, y: atY - 10, "text-anchor": "end", class: "label" },
          network.label);
      } else if (network.name) {
        shape(svg, "text", { class: "named", x: atX + 9, y: atY + 14 }, network.name);
      }
      if (index === selected) {
        shape(svg, "circle", { cx: atX, cy: atY, r: 11, fill: "none", stroke: CHOSEN, "stroke-width": 2 });
      }
    }
    const nearest = (event) => {
      const box = svg.getBoundingClientRect(), scale = WIDTH / box.width;
      const px = (event.clientX - box.left) * scale, py = (event.clientY - box.top) * scale;
      let best = null, least = NEAR;
      for (const index of spots) {
        const [atX, atY] = place(index), away = Math.hypot(atX - px, atY - py);
        if (away <= least) [best, least] = [index, away];
      }
      return best;
    };
    svg.addEventListener("pointermove", (event) => tip(nearest(event), event));
    svg.addEventListener("pointerleave", () => tip(null));
    svg.addEventListener("click", (event) => select(nearest(event)));
  }

  function tip(index, event) {
    const box = byId("tip");
    box.hidden = index === null;
    if (index === null) return;
    const network = data.networks[index];
    const line = (text, attributes = {}) => element("span", attributes, text);
    const values = data.choices.map((name, i) => `${name} ${network.values[i]}`).join(", ");
    box.replaceChildren(
      element("b", {}, [network.id, network.name, ...network.marks].filter(Boolean).join(", ")),
      ...(network.ap === null ? [] : [line(`AP ${ap(network.ap)}${interval(network.interval)}`)]),
      ...data.axes.map((each) => line(`${each.name}: ${cost(network, each)}`)),
      line(KIND_WORDS[kind(index)]),
      line(`from ${network.origin}, generation ${network.generation}${network.reused ? ", reused" : ""}`),
      line(values, { class: "values" }),
    );
    const around = byId("chart").getBoundingClientRect();
    const atX = event.clientX - around.left, atY = event.clientY - around.top;
    const far = atX > around.width / 2;
    box.style.left = far ? "auto" : `${atX + 14}px`;
    box.style.right = far ? `${around.width - atX + 14}px` : "auto";
    box.style.top = `${Math.max(0, Math.min(atY - 20, around.height - box.offsetHeight))}px`;
  }

  // -- beside and below the chart ------------------------------------------------------------------------
  function select(index) {
    selected = index;
    draw();
    details();
    table();
  }
  function details() {
    const aside = byId("details");
    if (selected === null) {
      aside.replaceChildren(element("h2", {}, "No network selected"),
        element("p", {}, "Point at a spot for its figures; click it, or a row below, to keep them here."));
      return;
    }
    const network = data.networks[selected], list = element("dl");
    const row = (name, value) => list.append(element("dt", {}, name), element("dd", {}, value));
    row("status", KIND_WORDS[kind(selected)]);
    if (network.ap !== null) row("AP", `${ap(network.ap)}${interval(network.interval)}`);
    for (const each of data.axes) row(each.name, cost(network, each));
    row("found by", `${network.origin}, generation ${network.generation}`);
    if (network.seconds !== null) row("evaluated in", `${digits(network.seconds, 3)} s`);
    data.choices.forEach((name, i) => row(name, String(network.values[i])));
    const button = (label, text) => {
      const made = element("button", { type: "button" }, label);
      made.addEventListener("click", () => copy(text, made));
      return made;
    };
    const parts = [
      element("h2", {}, [network.id, network.name].filter(Boolean).join(", ")),
      ...network.marks.map((text) => element("p", { class: "marks" }, text)),
      button("copy id", network.id),
    ];
    if (data.emit) {
      const command = `${data.emit} ${network.id}`;
      parts.push(button("copy command", command), element("code", {}, command));
    }
    aside.replaceChildren(...parts, list);
  }
  function table() {
    const head = byId("networks").tHead, body = byId("networks").tBodies[0];
    byId("heading").textContent = `Pareto front: AP against ${axis.name}`;
    const columns = ["network", "AP", "95%", ...data.axes.map((each) => each.name), "gain is a tie"];
    head.replaceChildren(element("tr", {}, ...columns.map((name) => element("th", { scope: "col" }, name))));
    body.replaceChildren(...axis.front.map((index, place) => {
      const network = data.networks[index], tie = place > 0 && axis.ties[place - 1];
      const cells = [
        [network.id, network.name, network.label].filter(Boolean).join(", "), ap(network.ap),
        interval(network.interval).trim(), ...data.axes.map((each) => cost(network, each)), tie ? "tie" : "",
      ];
      return element("tr", {
        tabindex: "0", "aria-selected": String(index === selected), onclick: () => select(index),
        onkeydown: (event) => { if (event.key === "Enter") select(index); },
      }, ...cells.map((cell) => element("td", {}, cell)));
    }));
  }
  function toggles() {
    const present = new Set(data.networks.map((network, index) => kind(index)));
    present.add("bars");
    if (data.axes.some((each) => each.published.length)) present.add("published");
    if (data.axes.some((each) => each.over.length)) present.add("over");
    present.add("dominated");
    const icons = (which) => {
      const icon = document.createElementNS(SVG, "svg");
      for (const [name, value] of [["width", 16], ["height", 16], ["aria-hidden", "true"]]) {
        icon.setAttribute(name, value);
      }
      if (which === "bars") shape(icon, "line", { x1: 8, x2: 8, y1: 1, y2: 15, stroke: INK });
      else if (which === "published") {
        shape(icon, "line", { x1: 8, x2: 8, y1: 1, y2: 15, stroke: PUBLISHED, "stroke-dasharray": "1.5 3" });
      } else mark(icon, which, 8, which === "priced" ? 12 : 8, data.colours.at(-1)[1]);
      return icon;
    };
    byId("toggles").replaceChildren(...KINDS.filter(([which]) => present.has(which)).map(([which, label]) => {
      const button = element("button", { type: "button", class: "toggle", "data-kind": which,
        "aria-pressed": String(shown.has(which)) }, icons(which), label);
      button.addEventListener("click", () => {
        if (!shown.delete(which)) shown.add(which);
        button.setAttribute("aria-pressed", String(shown.has(which)));
        draw();
      });
      return button;
    }));
    if (data.colours.length > 1) {
      byId("toggles").append(element("span", { class: "colours" }, ...data.colours.map(([name, colour]) => {
        const icon = document.createElementNS(SVG, "svg");
        icon.setAttribute("width", 10);
        icon.setAttribute("height", 10);
        shape(icon, "circle", { cx: 5, cy: 5, r: 4.5, fill: colour });
        return element("span", {}, icon, name);
      })));
    }
  }

  for (const name of ["title", "caption"]) if (byId(name)) byId(name).textContent = data[name];
  byId("keys").append(...data.keys.map((text) => element("p", {}, text)));
  byId("reading").textContent = data.reading;
  const chooser = byId("axis");
  data.axes.forEach((each, i) => chooser.append(element("option", { value: String(i) }, each.label)));
  chooser.value = String(data.first);
  chooser.addEventListener("change", () => {
    axis = data.axes[Number(chooser.value)];
    tip(null);
    toggles();
    select(selected);
  });
  const chosen = data.networks.findIndex((network) => network.marks.length);
  toggles();
  select(chosen < 0 ? null : chosen);
})();
