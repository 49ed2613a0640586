// The answers of report.html: filters, search, pages, and one answer in full, by mouse or by keyboard. All sampled text
// becomes text nodes, never markup.
const PAGE = 25

function browser(root, sources) {
  const all = sources.flatMap(source => source.groups.flatMap(group => group.answers.map((answer, i) => (
    {...answer, stage: source.stage, group, place: i + 1}))))
  all.forEach(row => row.search = [row.group.prompt, row.group.gold, row.text].join("\n").toLowerCase())
  const shownAs = verdict => verdict ? verdict.replaceAll("_", " ") : "no verdict"
  const when = row => row.group.step == null ? "evaluation" : "step " + count(row.group.step)
  let found = all, selected = 0

  const controls = root.appendChild(html("div", "controls"))
  function labelled(text, input) {
    const label = controls.appendChild(html("label", "", text))
    input.setAttribute("aria-label", text)
    label.append(input)
    return input
  }
  function choice(text, of, every) {   // a select over the values that there are; none where there is but one
    const values = [...new Set(all.map(of))], select = html("select", "")
    for (const value of [null, ...values]) {
      const option = select.appendChild(html("option", "", value == null ? every : value === "" ? "none" : value))
      option.value = value == null ? "" : "=" + value
    }
    if (values.length > 1) labelled(text, select)
    select.addEventListener("change", () => filter())
    return row => !select.value || select.value === "=" + of(row)
  }
  function bound(text, hint) {
    const input = labelled(text, html("input", ""))
    Object.assign(input, {type: "number", step: "any", placeholder: hint})
    input.addEventListener("input", () => filter())
    return input
  }
  const tests = [
    choice("Stage", row => row.stage, "all"), choice("Step", row => when(row), "all"),
    choice("Scenario", row => row.group.scenario, "all"), choice("Verdict", row => shownAs(row.verdict), "all"),
    choice("Filter", row => row.dropped ? "dropped: " + row.dropped : "kept", "all"),
  ]
  const rewards = all.map(row => row.reward).filter(value => value != null)
  const least = bound("Reward from", readable(rewards.length ? Math.min(...rewards) : null))
  const most = bound("to", readable(rewards.length ? Math.max(...rewards) : null))
  const search = labelled("Search", html("input", "search"))
  Object.assign(search, {type: "search", placeholder: "prompt, answer or gold"})
  search.addEventListener("input", () => filter())
  const summary = root.appendChild(html("p", "note"))
  summary.setAttribute("aria-live", "polite")

  const panes = root.appendChild(html("div", "panes")), side = panes.appendChild(html("div", "side"))
  const list = side.appendChild(html("ol", "list"))
  const roles = {role: "listbox", tabindex: 0, "aria-label": "Answers"}
  for (const key in roles) list.setAttribute(key, roles[key])
  const pager = side.appendChild(html("div", "pager"))
  const back = pager.appendChild(html("button", "", "‹ back")), where = pager.appendChild(html("span", ""))
  const next = pager.appendChild(html("button", "", "further ›"))
  back.addEventListener("click", () => turn(-1))
  next.addEventListener("click", () => turn(1))
  const detail = panes.appendChild(html("article", "detail"))

  function filter() {
    const [low, high] = [least, most].map(input => input.value === "" ? null : Number(input.value))
    const words = search.value.toLowerCase()
    const kept = found[selected]
    found = all.filter(row => tests.every(test => test(row)) && (!words || row.search.includes(words))
      && (low == null || row.reward != null && row.reward >= low)
      && (high == null || row.reward != null && row.reward <= high))
    summary.textContent = `${count(found.length)} of ${count(all.length)} answers`
    select(Math.max(0, found.indexOf(kept)))
  }

  function turn(by) { select(Math.min(found.length - 1, (Math.floor(selected / PAGE) + by) * PAGE)) }

  function select(index) {
    selected = Math.max(0, Math.min(found.length - 1, index))
    const page = Math.floor(selected / PAGE), rows = found.slice(page * PAGE, (page + 1) * PAGE)
    list.replaceChildren(...rows.map((row, i) => {
      const item = html("li", ""), chosen = page * PAGE + i === selected
      item.append(mark(row), html("span", "reward", readable(row.reward)),
                  html("span", "start", row.text.slice(0, 160).replace(/\s+/g, " ") || "(empty)"),
                  html("span", "from", `${row.stage}, ${when(row)}`))
      item.id = "answer-" + i
      item.setAttribute("role", "option")
      item.setAttribute("aria-selected", chosen)
      item.addEventListener("click", () => select(page * PAGE + i))
      return item
    }))
    if (found.length) list.setAttribute("aria-activedescendant", "answer-" + selected % PAGE)
    else list.removeAttribute("aria-activedescendant")
    const item = list.children[selected % PAGE]
    if (item) {   // within the list alone: the page must not jump
      if (item.offsetTop < list.scrollTop) list.scrollTop = item.offsetTop
      const below = item.offsetTop + item.offsetHeight - list.clientHeight
      if (below > list.scrollTop) list.scrollTop = below
    }
    where.textContent = found.length ? `page ${page + 1} of ${Math.ceil(found.length / PAGE)}` : "no answer fits"
    back.disabled = page === 0
    next.disabled = (page + 1) * PAGE >= found.length
    show(found[selected])
  }

  // right, wrong, or neither: where no answer was asked for
  const kind = row => row.verdict === "correct" ? "good" : ["", "not_asked"].includes(row.verdict) ? "neutral" : "bad"
  const mark = row => html("b", kind(row), {good: "✓", bad: "✗", neutral: "·"}[kind(row)])

  function marked(text) {   // a <pre> in which what is searched for stands out
    const pre = html("pre", "text"), words = search.value.toLowerCase(), lower = text.toLowerCase()
    let at = 0
    if (words && lower.length === text.length)
      for (let hit; (hit = lower.indexOf(words, at)) >= 0; at = hit + words.length)
        pre.append(text.slice(at, hit), html("mark", "", text.slice(hit, hit + words.length)))
    pre.append(text.slice(at))
    return pre
  }

  function show(row) {
    detail.replaceChildren()
    if (!row) return
    const facts = html("div", "facts"), fact = (name, value) => {
      const line = facts.appendChild(html("span", "", name + " "))
      line.append(html("b", "", value))
    }
    const verdict = facts.appendChild(html("b", kind(row)))
    verdict.append(mark(row), " " + shownAs(row.verdict))
    fact("from", `${row.stage}, ${when(row)}, problem ${row.group.problem}`)
    if (row.group.scenario) fact("scenario", row.group.scenario)
    if (row.dropped) fact("left out by", row.dropped)
    fact("reward", readable(row.reward))
    for (const [name, value, says] of row.parts) {
      const more = says && name !== "accuracy" ? ` (${shownAs(says)})` : ""
      fact("· " + name, says === "not_asked" ? "does not apply" : readable(value) + more)
    }
    if (row.advantage != null) fact("advantage", (row.advantage > 0 ? "+" : "") + readable(row.advantage))
    fact("tokens", readable(row.length))
    if (row.logp_mean != null) fact("log-prob", `${readable(row.logp_mean)}, least ${readable(row.logp_min)}`)
    if (row.group.gold) fact("gold answer", row.group.gold)
    const texts = html("div", "texts")
    texts.append(html("h4", "", "Prompt"), marked(row.group.prompt), html("h4", "", "Answer"), marked(row.text))
    const group = found.map((other, i) => [other, i]).filter(([other]) => other.group === row.group)
    if (group.length > 1) {
      const chips = html("div", "chips", "answers to it: ")
      for (const [other, i] of group) {
        const chip = chips.appendChild(html("button", other === row ? "chosen" : "", other.place + " "))
        chip.append(mark(other))
        chip.addEventListener("click", () => { select(i); list.focus({preventScroll: true}) })
      }
      texts.append(chips)
    }
    detail.append(facts, texts)
  }

  const typing = node => ["INPUT", "SELECT"].includes(node.tagName)
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    if (event.target === search && ["Escape", "Enter"].includes(event.key)) {
      event.preventDefault()      // or Escape would empty the field
      return list.focus({preventScroll: true})
    }
    if (typing(event.target)) return
    const arrows = event.target === list ? {ArrowDown: 1, ArrowUp: -1, PageDown: PAGE, PageUp: -PAGE} : {}
    const to = {Home: 0, End: found.length - 1}[event.key], by = {j: 1, k: -1, ...arrows}[event.key]
    if (event.key === "/") { search.focus(); search.select() }
    else if (event.key === "[" || event.key === "]") turn(event.key === "]" ? 1 : -1)
    else if (by) select(selected + by)
    else if (to !== undefined && event.target === list) select(to)
    else return
    event.preventDefault()
    const box = root.getBoundingClientRect()   // keys work from anywhere: show what they do
    if (box.top > innerHeight - 200 || box.bottom < 200) root.scrollIntoView({block: "start"})
    if (event.key !== "/" && event.target !== list) list.focus({preventScroll: true})
  })
  filter()
}

const answers = document.getElementById("samples")
if (answers) browser(document.getElementById("browser"), JSON.parse(answers.textContent))
