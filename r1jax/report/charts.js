// Draws the curves of report.html from the JSON beside it. Each chart's legend is its read-out: it shows the
// last values, or those at the crosshair, which all charts of a stage share. spec.bounds: stages on one axis, by their
// first step; spec.spans: stretches to shade.
const LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 20

// Round numbers inside [low, high], about `count` of them: multiples of 1, 2 or 5 times a power of ten.
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw))
  const step = power * [1, 2, 5, 10].find(times => times * power >= raw * 0.999)
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9)
  return Array.from({length: Math.max(0, last - first + 1)}, (_, i) => +((first + i) * step).toPrecision(12))
}

function decades(low, high) {
  const first = Math.ceil(low - 1e-9), every = Math.max(1, Math.ceil((high - low) / 4)), found = []
  for (let power = first; power <= high + 1e-9; power += every) found.push(10 ** power)
  return found
}

// The y axis: its range in drawn units, its ticks, and from a value to a drawn unit (null: cannot be drawn).
function vertical(spec) {
  const values = spec.curves.flatMap(c => [...c.y, ...(c.lo || []), ...(c.hi || [])]).filter(v => v != null)
  const positive = values.filter(v => v > 0)
  let low = Math.min(...values), high = Math.max(...values)
  if (spec.log && positive.length && high / Math.min(...positive) > 50) {
    low = Math.log10(Math.min(...positive)), high = Math.log10(high)
    return {low, high, log: true, at: decades(low, high), unit: v => v > 0 ? Math.log10(v) : null}
  }
  if (spec.tall && spec.share) low = 0, high = 1
  if (low > 0 && (low < 0.5 * high || spec.tall)) low = 0
  if (low === high) low -= Math.abs(low) / 2, high += Math.abs(high) / 2 || 1
  const at = ticks(low, high, spec.tall ? 6 : 4)
  if (low !== 0 && high > low) { const gap = (high - low) * 0.04; low -= gap }
  return {low, high: high + (high - low) * (spec.tall && spec.share ? 0 : 0.04), log: false, at, unit: v => v}
}

function nearest(xs, x) {
  let low = 0, high = xs.length - 1
  while (high - low > 1) {
    const middle = (low + high) >> 1
    if (xs[middle] < x) low = middle; else high = middle
  }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high
}

// Of neighbours of the same stage: `stage` says which one a step is of.
function runningMean(xs, ys, stage) {
  const reach = Math.max(2, Math.round(ys.length / 40)), of = xs.map(stage)
  return ys.map((y, i) => {
    const from = Math.max(0, i - reach)
    const near = ys.slice(from, i + reach + 1).filter((v, j) => v != null && of[from + j] === of[i])
    return y == null ? null : near.reduce((a, b) => a + b, 0) / near.length
  })
}

function chart(figure, spec) {
  const legend = figure.appendChild(html("div", "legend")), plot = figure.appendChild(html("div", "plot"))
  const readouts = spec.curves.map((curve, i) => {
    const item = legend.appendChild(html("span", "s" + i % 8))
    const key = item.appendChild(svg("svg", {viewBox: "0 0 16 8"}))
    key.append(curve.marks ? svg("circle", {cx: 8, cy: 4, r: 3.5, class: "dot"})
                           : svg("path", {d: "M1 4H15", class: "curve"}))
    item.append(curve.name + " ")
    const value = item.appendChild(html("b", ""))   // as wide as its widest, or the page would jump
    value.style.minWidth = Math.max(...curve.y.map(y => readable(y, spec.share).length)) + "ch"
    return value
  })
  const axis = vertical(spec), [start, end] = spec.x[0] < spec.x[1] ? spec.x : [spec.x[0] - 1, spec.x[0] + 1]
  const height = spec.tall ? 250 : 140, high = height - TOP - BOTTOM
  const all = [...new Set(spec.curves.flatMap(c => c.x))].sort((a, b) => a - b)
  let width = 0, cursor = null, cross = null
  const px = x => LEFT + (x - start) / (end - start) * (width - LEFT - RIGHT)
  const py = v => {
    const unit = axis.unit(v)
    return v == null || unit == null ? null : TOP + (axis.high - unit) / (axis.high - axis.low || 1) * high
  }

  const bounds = spec.bounds || [], stage = x => bounds.findLastIndex(bound => bound.at <= x)
  const named = x => bounds.length ? `${bounds[stage(x)].name} ${count(x - bounds[stage(x)].at)}` : "step " + count(x)
  const beside = x => px(x) > width - RIGHT - 24 ? "end" : "middle"   // no label may leave the chart

  function line(xs, ys) {   // a gap where a value is missing or a stage begins; a lone point becomes a round dot
    let d = "", pen = false
    xs.forEach((x, i) => {
      const y = py(ys[i])
      if (i && stage(x) !== stage(xs[i - 1])) pen = false
      if (y != null) d += `${pen ? "L" : "M"}${px(x).toFixed(1)} ${y.toFixed(1)}${pen ? "" : "h0"}`
      pen = y != null
    })
    return d
  }

  function draw() {
    width = plot.clientWidth
    if (!width) return
    const root = svg("svg", {width, height, "aria-hidden": "true"})
    for (const [from, to] of spec.spans || []) {
      const across = Math.max(2, px(to) - px(from))
      root.append(svg("rect", {x: px(from), y: TOP, width: across, height: high, class: "span"}))
    }
    let labelled = Infinity
    for (const value of axis.at) {
      const y = py(value)
      if (labelled - y < 16) continue   // from the bottom up, drop labels that would touch
      labelled = y
      root.append(svg("line", {x1: LEFT, x2: width - RIGHT, y1: y, y2: y, class: "tick"}),
                  svg("text", {x: LEFT - 7, y: y + 4, "text-anchor": "end"},
                      spec.share ? +(100 * value).toPrecision(3) + "%" : readable(value)))
    }
    for (const x of ticks(start, end, Math.max(2, width / 90)))
      if (Number.isInteger(x))
        root.append(svg("text", {x: px(x), y: height - 4, "text-anchor": beside(x)}, count(x)))
    spec.curves.forEach((curve, i) => {
      const colour = " s" + i % 8, smooth = spec.tall && !curve.marks && curve.x.length > 40
      if (curve.lo) {
        const at = curve.x.map((x, j) => [px(x), py(curve.lo[j]), py(curve.hi[j])]).filter(p => !p.includes(null))
        const edge = side => at.map(p => `${p[0].toFixed(1)} ${p[side].toFixed(1)}`)
        const d = [...edge(1), ...edge(2).reverse()]
        root.append(svg("path", {d: "M" + d.join("L") + "Z", class: "band" + colour}))
      }
      root.append(svg("path", {d: line(curve.x, curve.y), class: "curve" + (smooth ? " pale" : "") + colour}))
      const mean = smooth && line(curve.x, runningMean(curve.x, curve.y, stage))
      if (smooth) root.append(svg("path", {d: mean, class: "curve" + colour}))
      if (curve.x.length === 1 || curve.marks && curve.x.length < 60) curve.x.forEach((x, j) => {
        const y = py(curve.y[j])
        if (y != null) root.append(svg("circle", {cx: px(x), cy: y, r: 4, class: "dot" + colour}))
      })
    })
    bounds.forEach((bound, i) => {
      const x = px(bound.at), room = px(i + 1 < bounds.length ? bounds[i + 1].at : end) - x
      if (i) root.append(svg("line", {x1: x, x2: x, y1: TOP, y2: height - BOTTOM, class: "bound"}))
      if (room > 6.5 * bound.name.length + 8)
        root.append(svg("text", {x: x + 5, y: TOP + 12, class: "name"}, bound.name))
    })
    cross = root.appendChild(svg("g", {}))
    plot.replaceChildren(root)
    show(cursor)
  }

  function show(x) {   // null: no crosshair, and the last values
    cursor = x
    const at = x ?? all[all.length - 1], said = []
    if (cross) cross.replaceChildren()
    if (cross && x != null)
      cross.append(svg("line", {x1: px(x), x2: px(x), y1: TOP, y2: height - BOTTOM, class: "cross"}),
                   svg("text", {x: px(x), y: height - 4, "text-anchor": beside(x), class: "step"},
                       named(x)))
    spec.curves.forEach((curve, i) => {
      const j = nearest(curve.x, at), value = readable(curve.y[j], spec.share)
      readouts[i].textContent = value
      said.push(`${curve.name} ${value}` + (curve.x[j] === at ? "" : ` (${named(curve.x[j])})`))
      const y = py(curve.y[j])
      if (x != null && y != null && cross)
        cross.append(svg("circle", {cx: px(curve.x[j]), cy: y, r: 4, class: "dot s" + i % 8}))
    })
    plot.setAttribute("aria-valuenow", at)
    plot.setAttribute("aria-valuetext", `${named(at)}: ${said.join(", ")}`)
  }

  const together = x => drawn.forEach(other => other.stage === spec.stage && other.show(x))
  const point = event => {
    const across = (event.clientX - plot.getBoundingClientRect().left - LEFT) / (width - LEFT - RIGHT)
    together(all[nearest(all, start + across * (end - start))])
  }
  plot.addEventListener("pointermove", point)
  plot.addEventListener("pointerdown", point)
  plot.addEventListener("pointerleave", () => together(null))
  plot.addEventListener("blur", () => together(null))
  plot.addEventListener("keydown", event => {
    const last = all.length - 1, by = event.shiftKey ? 10 : 1
    const now = cursor == null ? last : nearest(all, cursor)
    const to = {ArrowLeft: now - by, ArrowDown: now - by, ArrowRight: now + by, ArrowUp: now + by,
                Home: 0, End: last}[event.key]
    if (event.key === "Escape") return together(null)
    if (to === undefined) return
    event.preventDefault()
    together(all[Math.min(last, Math.max(0, to))])
  })
  const attributes = {tabindex: 0, role: "slider", "aria-orientation": "horizontal",
                      "aria-label": spec.title + ", by step",
                      "aria-valuemin": all[0], "aria-valuemax": all[all.length - 1]}
  for (const key in attributes) plot.setAttribute(key, attributes[key])
  const resized = () => { if (plot.clientWidth !== width) draw() }
  new ResizeObserver(() => requestAnimationFrame(resized)).observe(plot)
  draw()
  if (axis.log) figure.querySelector("figcaption span").append(" (log scale)")
  return {stage: spec.stage, show}
}

const specs = JSON.parse(document.getElementById("charts").textContent)
const figures = [...document.querySelectorAll("figure[data-chart]")]
const drawn = figures.map(figure => chart(figure, specs[figure.dataset.chart]))
