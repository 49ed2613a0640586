"use strict"
// What charts.js and browser.js share. The three are one script on the page.
const SVG = "http://www.w3.org/2000/svg"   // a name, not an address: nothing is fetched

function svg(name, attributes, text) {
  const node = document.createElementNS(SVG, name)
  for (const key in attributes) node.setAttribute(key, attributes[key])
  if (text !== undefined) node.textContent = text
  return node
}

function html(name, className, text) {
  const node = document.createElement(name)
  node.className = className
  if (text !== undefined) node.textContent = text
  return node
}

const count = whole => whole.toLocaleString("en")

function readable(value, share) {
  if (value == null) return "–"
  const size = Math.abs(value)
  if (share) return (100 * value).toFixed(size >= 0.1 || !size ? 1 : 2) + "%"
  const far = size >= 1e7 || (size && size < 1e-3)
  const near = size >= 1000 ? count(Math.round(value)) : String(+value.toPrecision(3))
  const text = far ? value.toExponential(1) : near
  return text.replace("e+", "e").replaceAll("-", "−")
}
