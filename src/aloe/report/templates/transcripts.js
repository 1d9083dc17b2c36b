"use strict";
// The browser of transcripts. Texts of models are data: they reach the page as text nodes, never as markup, and the
// page's policy refuses anything else. Plain ASCII, no library; the digest of this file stands in the policy.
(function () {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("t-data").textContent);
  const names = data.names, texts = data.texts, lengths = new Map(data.lengths);
  const at = (fields) => Object.fromEntries(fields.map((name, i) => [name, i]));
  const R = at(data.fields.row), J = at(data.fields.judge), E = at(data.fields.expectation);
  const PAGE = 50, FOLD = 1500, MORE = 20000;
  const REPLY = /^(assistant$|member |continuation )/; // roles of what a model said
  const BAD = ["unsafe", "over-refused", "failed", "wrong"], GOOD = ["safe", "answered", "passed", "right"];
  const KINDS = { attack: "attack", escalation: "escalation", benign: "harmless look-alike", scenario: "clinical scenario", question: "question with a key", scored: "scored without a key" };

  // Rows of one item, in the models' order.
  const items = [];
  const place = new Map();
  for (const row of data.rows) {
    const key = row[R.set] + " " + row[R.kind] + " " + row[R.item];
    if (!place.has(key)) { place.set(key, items.length); items.push([]); }
    items[place.get(key)].push(row);
  }
  for (const rows of items) rows.sort((a, b) => a[R.model] - b[R.model]);
  const differ = (rows) => rows.some((row) => row[R.verdict] !== rows[0][R.verdict]);

  // -- text ----------------------------------------------------------------------------------------------------------

  // Characters that show nothing, move the cursor or turn the direction of what follows.
  const HIDDEN = new RegExp("[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5" +
    "\\u180b-\\u180f\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\u2800\\u3164\\ufe00-\\ufe0e\\ufeff\\uffa0\\ufff0-\\ufffb" +
    "\\u{1bca0}-\\u{1bca3}\\u{1d173}-\\u{1d17a}\\u{e0000}-\\u{e0fff}]|\\p{Cs}", "gu");

  function element(name, class_, text) {
    const made = document.createElement(name);
    if (class_) made.className = class_;
    if (text !== undefined) made.append(text);
    return made;
  }

  function visible(into, text) {
    // Runs of plain text as text nodes; each hidden character as its code point.
    let from = 0;
    for (const found of text.matchAll(HIDDEN)) {
      if (found.index > from) into.append(text.slice(from, found.index));
      const code = "U+" + found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      const mark = element("span", "hidden-char", code);
      mark.title = "a character that can't be seen";
      into.append(mark);
      from = found.index + found[0].length;
    }
    if (from < text.length) into.append(text.slice(from));
    return into;
  }

  function whole(text, end) {
    // Not between the halves of a surrogate pair.
    const code = text.charCodeAt(end - 1);
    return end < text.length && code >= 0xd800 && code <= 0xdbff ? end - 1 : end;
  }

  function piece(into, text, from, to, marked) {
    const cuts = [from];
    for (const [a, b] of marked) for (const x of [a, b]) if (x > from && x < to) cuts.push(x);
    cuts.push(to);
    cuts.sort((a, b) => a - b);
    for (let i = 0; i + 1 < cuts.length; i++) {
      const part = text.slice(cuts[i], cuts[i + 1]);
      const inside = marked.some(([a, b]) => cuts[i] >= a && cuts[i + 1] <= b);
      visible(inside ? into.appendChild(element("mark")) : into, part);
    }
  }

  function long(number, marked) {
    // A text that starts folded when it is long, and unfolds in steps.
    const text = texts[number], box = element("div", "say"), body = element("div", "said");
    body.dir = "auto";
    box.append(body);
    const reach = Math.max(0, ...marked.map((m) => m[1]));
    let shown = 0;
    const grow = (to) => { const end = whole(text, Math.min(text.length, to)); piece(body, text, shown, end, marked); shown = end; };
    grow(text.length <= FOLD * 1.2 ? text.length : Math.max(FOLD, Math.min(reach, MORE)));
    const more = element("button", "more");
    more.type = "button";
    const label = () => { more.textContent = "Show " + Math.min(MORE, text.length - shown).toLocaleString() + " of " + (text.length - shown).toLocaleString() + " more characters"; };
    more.addEventListener("click", () => { grow(shown + MORE); if (shown >= text.length) { more.remove(); } else label(); });
    if (shown < text.length) { label(); box.append(more); }
    if (!text) body.append(element("em", "faint", "nothing"));
    if (lengths.has(number)) box.append(element("p", "note", "This page holds the first " + text.length.toLocaleString() + " of " + lengths.get(number).toLocaleString() + " characters."));
    return box;
  }

  // -- verdicts ------------------------------------------------------------------------------------------------------

  function chip(verdict, before) {
    const kind = BAD.includes(verdict) ? "bad" : GOOD.includes(verdict) ? "good" : "open";
    const sign = { bad: "\u25b2 ", good: "\u25cf ", open: "\u25cb " }[kind];
    const made = element("span", "chip " + kind);
    if (before) visible(made, before + " ");
    made.append(sign + verdict);
    return made;
  }

  function said(judge, evidence) {
    const line = element("li");
    visible(line.appendChild(element("strong")), names.judge[judge[J.judge]]);
    const parts = [judge[J.harm], judge[J.refusal], judge[J.rule] && "rule " + judge[J.rule], judge[J.score] !== null && "P(unsafe) " + judge[J.score], judge[J.error] && "no verdict: " + judge[J.error]].filter(Boolean);
    visible(line, ": " + (parts.join(", ") || "says nothing"));
    if (evidence && judge[J.evidence]) visible(line.appendChild(element("q")), judge[J.evidence]);
    return line;
  }

  function expected(one, evidence) {
    const line = element("li");
    const met = one[E.met];
    line.append(chip(met === true ? "met" : met === false ? "not met" : "no verdict"));
    line.firstChild.className = "chip " + (met === true ? "good" : met === false ? "bad" : "open");
    visible(line, " " + one[E.kind].replaceAll("_", " ") + ": " + one[E.about]);
    if (evidence && one[E.evidence]) visible(line.appendChild(element("q")), one[E.evidence]);
    return line;
  }

  // -- a conversation ------------------------------------------------------------------------------------------------

  function replyFrom(row) {
    // Where the target's own words begin: in attacks the last turn (earlier ones are the attack's), else the first reply.
    const messages = row[R.messages], kind = names.kind[row[R.kind]];
    const replies = messages.map((m, i) => (m[0] === "assistant" ? i : -1)).filter((i) => i >= 0);
    if (kind === "question" || kind === "scored") return messages.findIndex((m) => REPLY.test(m[0])) < 0 ? messages.length : messages.findIndex((m) => REPLY.test(m[0]));
    if (kind === "scenario" || kind === "escalation") return replies.length ? replies[0] : messages.length;
    return replies.length && replies[replies.length - 1] === messages.length - 1 ? messages.length - 1 : messages.length;
  }

  function turn(row, i, target) {
    const [role, number] = row[R.messages][i];
    const box = element("div", "turn " + (REPLY.test(role) ? "assistant" : role === "system" ? "system" : "user"));
    const who = element("p", "who");
    visible(who, role === "assistant" ? (target ? "reply" : "assistant (written by the attack)") : role);
    const marked = [];
    for (const judge of row[R.judges]) for (const m of judge[J.marks]) if (m[0] === i) marked.push([m[1], m[2]]);
    for (const one of row[R.expectations]) for (const m of one[E.marks]) if (m[0] === i) marked.push([m[1], m[2]]);
    box.append(who, long(number, marked));
    return box;
  }

  function shared(rows) {
    let end = Math.min(...rows.map(replyFrom));
    for (let i = 0; i < end; i++) {
      const [role, number] = rows[0][R.messages][i];
      if (rows.some((row) => row[R.messages][i][0] !== role || row[R.messages][i][1] !== number)) end = i;
    }
    return end;
  }

  function answer(row, from) {
    const box = element("article", "answer");
    const head = element("h4");
    visible(head, names.model[row[R.model]]);
    head.id = "t-answer-" + row[R.model];
    box.setAttribute("aria-labelledby", head.id);
    box.append(head);
    const facts = element("p", "verdict");
    facts.append(chip(names.verdict[row[R.verdict]]));
    const label = names.refusal[row[R.refusal]];
    if (label) visible(facts.appendChild(element("span", "faint")), " " + label);
    if (row[R.disagree]) facts.append(element("span", "chip open", "\u2260 judges disagree"));
    box.append(facts);
    if (row[R.note]) visible(box.appendChild(element("p", "note")), row[R.note]);
    const fill = (into, evidence) => {
      const first = replyFrom(row);
      for (let i = from; i < row[R.messages].length; i++) into.append(turn(row, i, i >= first));
      if (evidence) into.append(verdicts(row, true));
    };
    if (row[R.fold]) {
      const closed = box.appendChild(verdicts(row, false));
      const fold = element("details", "fold"), open = element("summary", "", row[R.fold] + " Show it");
      fold.append(open);
      fold.addEventListener("toggle", () => { if (fold.open && fold.childElementCount === 1) { closed.remove(); fill(fold, true); } });
      box.append(fold);
    } else {
      fill(box, true);
    }
    return box;
  }

  function verdicts(row, evidence) {
    const list = element("ul", "judges");
    for (const judge of row[R.judges]) list.append(said(judge, evidence));
    for (const one of row[R.expectations]) list.append(expected(one, evidence));
    return list;
  }

  function show(rows) {
    const into = byId("t-detail"), first = rows[0];
    into.replaceChildren();
    const head = element("h3");
    visible(head, texts[first[R.request]].slice(0, 300) || names.item[first[R.item]]);
    const facts = element("p", "note");
    const kind = names.kind[first[R.kind]];
    const base = names.base[first[R.base]];
    visible(facts, [names.set[first[R.set]], KINDS[kind] || kind, names.topic[first[R.topic]], names.style[first[R.style]], "item " + names.item[first[R.item]], base && base !== names.item[first[R.item]] ? "base " + base : ""].filter(Boolean).join(" \u00b7 ").replaceAll("_", " "));
    into.append(head, facts);
    const from = shared(rows);
    if (from) {
      const asked = element("div", "asked");
      for (let i = 0; i < from; i++) asked.append(turn(first, i, false));
      into.append(asked);
    }
    const sides = element("div", rows.length > 3 ? "answers many" : "answers");
    sides.setAttribute("role", "group");
    sides.setAttribute("aria-label", "Replies side by side");
    for (const row of rows) sides.append(answer(row, from));
    into.append(sides);
    into.scrollTop = 0;
  }

  // -- the list ------------------------------------------------------------------------------------------------------

  const list = byId("t-list"), picks = ["set", "model", "kind", "topic", "style", "verdict", "refusal"];
  let found = [], page = 0, chosen = -1;

  function option(index, place_) {
    const rows = items[index], first = rows[0];
    const made = element("li");
    made.id = "t-item-" + place_;
    made.setAttribute("role", "option");
    made.setAttribute("aria-selected", "false");
    made.setAttribute("aria-posinset", String(place_ + 1));
    made.setAttribute("aria-setsize", String(found.length));
    const line = element("span", "request");
    line.dir = "auto";
    visible(line, texts[first[R.request]].slice(0, 160) || names.item[first[R.item]]);
    const facts = element("span", "facts-line");
    visible(facts, [names.set.length > 1 ? names.set[first[R.set]] : "", names.topic[first[R.topic]], names.style[first[R.style]]].filter(Boolean).join(" \u00b7 ").replaceAll("_", " "));
    made.append(line, facts);
    const chips = element("span", "chips");
    for (const row of rows) chips.append(chip(names.verdict[row[R.verdict]], rows.length > 1 ? names.model[row[R.model]] : ""));
    made.append(chips);
    made.addEventListener("click", () => choose(place_, false));
    return made;
  }

  function draw() {
    const start = page * PAGE, end = Math.min(found.length, start + PAGE);
    const made = [];
    for (let i = start; i < end; i++) made.push(option(found[i], i));
    list.replaceChildren(...made);
    list.scrollTop = 0;
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    byId("t-page").textContent = "page " + (page + 1) + " of " + pages;
    byId("t-back").disabled = page === 0;
    byId("t-on").disabled = page + 1 >= pages;
  }

  function choose(to, focus) {
    if (!found.length) return;
    chosen = Math.max(0, Math.min(found.length - 1, to));
    const wanted = Math.floor(chosen / PAGE);
    if (wanted !== page) { page = wanted; draw(); }
    for (const other of list.querySelectorAll('[aria-selected="true"]')) other.setAttribute("aria-selected", "false");
    const mine = byId("t-item-" + chosen);
    mine.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", mine.id);
    if (mine.offsetTop < list.scrollTop) list.scrollTop = mine.offsetTop;
    const below = mine.offsetTop + mine.offsetHeight - list.clientHeight;
    if (below > list.scrollTop) list.scrollTop = below;
    show(items[found[chosen]]);
    if (focus) byId("t-detail").focus();
  }

  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const moves = { ArrowDown: chosen + 1, ArrowUp: chosen - 1, Home: 0, End: found.length - 1, PageDown: chosen + PAGE, PageUp: chosen - PAGE };
    if (event.key in moves) { event.preventDefault(); choose(moves[event.key], false); }
    else if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(chosen, true); }
  });
  byId("t-back").addEventListener("click", () => choose((page - 1) * PAGE, false));
  byId("t-on").addEventListener("click", () => choose((page + 1) * PAGE, false));
  byId("t-detail").addEventListener("keydown", (event) => { if (event.key === "Escape") list.focus(); });

  // -- filters -------------------------------------------------------------------------------------------------------

  let lower = null;
  function holding(word) {
    if (!lower) lower = texts.map((t) => t.toLowerCase());
    return lower.map((t) => t.includes(word));
  }

  function filter() {
    const words = byId("t-search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const held = words.map(holding);
    const ids = words.map((word) => names.item.map((name) => name.toLowerCase().includes(word)));
    const wanted = picks.map((field) => [R[field], byId("t-" + field).value]).filter((p) => p[1] !== "").map((p) => [p[0], Number(p[1])]);
    const odds = byId("t-disagree").checked, apart = byId("t-differ").checked;
    const fits = (row) =>
      wanted.every(([field, value]) => row[field] === value) && (!odds || row[R.disagree] === 1) &&
      held.every((text, w) => ids[w][row[R.item]] || text[row[R.request]] || row[R.messages].some((m) => text[m[1]]));
    found = [];
    for (let i = 0; i < items.length; i++) if ((!apart || differ(items[i])) && items[i].some(fits)) found.push(i);
    page = 0;
    chosen = -1;
    draw();
    const total = items.length.toLocaleString();
    byId("t-status").textContent = found.length === items.length ? total + " items" : found.length.toLocaleString() + " of " + total + " items";
    if (found.length) choose(0, false);
    else byId("t-detail").replaceChildren(element("p", "note", "Nothing matches."));
  }

  for (const field of picks) {
    const select = byId("t-" + field), there = new Map();
    for (const row of data.rows) there.set(row[R[field]], (there.get(row[R[field]]) || 0) + 1);
    const any = element("option", "", "any");
    any.value = "";
    select.append(any);
    const order = field === "model" ? [...there.keys()].sort((a, b) => a - b) : [...there.keys()].sort((a, b) => (names[field][a] < names[field][b] ? -1 : 1));
    for (const number of order) {
      const name = names[field][number];
      if (!name) continue;
      const made = element("option");
      visible(made, (KINDS[name] || name).replaceAll("_", " ").slice(0, 80) + " (" + there.get(number).toLocaleString() + ")");
      made.value = String(number);
      select.append(made);
    }
    select.addEventListener("change", filter);
    select.parentElement.hidden = select.options.length < 3; // any, and one more: nothing to choose
  }
  byId("t-disagree").parentElement.hidden = !data.rows.some((row) => row[R.disagree]);
  byId("t-differ").parentElement.hidden = !items.some(differ);
  let waiting = 0;
  byId("t-search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
  byId("t-search").addEventListener("keydown", (event) => { if (event.key === "ArrowDown") { event.preventDefault(); list.focus(); } });
  for (const id of ["t-disagree", "t-differ"]) byId(id).addEventListener("change", filter);
  byId("t-clear").addEventListener("click", () => {
    for (const field of picks) byId("t-" + field).value = "";
    byId("t-search").value = "";
    byId("t-disagree").checked = byId("t-differ").checked = false;
    filter();
  });

  byId("t-browser").hidden = false;
  filter();
})();
