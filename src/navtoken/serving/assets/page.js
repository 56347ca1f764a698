"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const KEY = "navtoken-key";
  const LEVELS = [0.25, 0.67, 1.5];
  const ALTERNATIVES = 5;
  // Special tokens are no part of the answer, but were written, too.
  const END = "∎";
  let pair = null;
  let running = null;

  // ---- words ----------------------------------------------------------------------------------------------------

  const percent = (p) => (p >= 0.9995 || p === 0 || p >= 0.001 ? (100 * p).toFixed(1) : "<0.1") + " %";
  const counted = (n) => (n === 1 ? "1 token" : `${n} tokens`);
  const nats = (x) => (x === null || x === undefined ? "–" : `${x.toFixed(3)} nats`);
  const short = (x) => {
    for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (x >= size) return (x / size).toPrecision(3) + " " + unit;
    return String(Math.round(x));
  };
  const seconds = (s) => (s === null || s === undefined ? "–" : s < 1 ? `${Math.round(1000 * s)} ms` : `${s.toFixed(2)} s`);
  const spelled = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ | $/g, "␣") || "(nothing)";

  function problem(status, body, retry) {
    const said = body && body.error ? body.error : {};
    const where = said.param && !PLACES[said.param] ? ` (${said.param})` : "";
    if (status === 401) return new Refused("The server wants its API key, and this is not it: enter it under “Sampling and access”.", "key");
    if (status === 429) return new Refused(`The server is full. Try again in ${retry || "a few"} seconds.`);
    if (status === 503) return new Refused(`The server cannot answer now: ${said.message || "it is not ready"}.`);
    return new Refused(`${said.message || `the server answered ${status}`}${where}`, said.param);
  }

  // ---- what is wrong with the form, at the field that it concerns -----------------------------------------------

  const PLACES = {
    messages: "#question", temperature: "#temperature", top_p: "#top_p", seed: "#seed", max_tokens: "#max_tokens", key: "#key",
    policy: "select", threshold: "input[type=number]",
  };

  function blame(field, message) {
    const first = !$('[aria-invalid="true"]');
    const said = field.closest("label, .policy") || field;
    const told = said.nextElementSibling?.matches(".wrong") ? said.nextElementSibling : make("p", "wrong");
    told.textContent = message;
    told.id = `wrong-${field.id || field.type + field.closest("[data-side]").dataset.side}`;
    said.after(told);
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", told.id);
    const fold = field.closest("details");
    if (fold) fold.open = true;
    if (first) field.focus();
  }

  function forgive() {
    for (const told of all(".wrong")) told.remove();
    for (const field of all("[aria-invalid]")) {
      field.removeAttribute("aria-invalid");
      field.removeAttribute("aria-describedby");
    }
  }

  function blameFor(error, fields) {
    const place = PLACES[error.param];
    const field = place && ($(place, fields) || $(place));
    if (field) blame(field, error.message);
  }

  function faultless() {
    forgive();
    if (!$("#question").value.trim()) blame($("#question"), "Ask something.");
    for (const field of $("#ask").elements) if (!field.validity.valid && !field.validity.stepMismatch) blame(field, field.validationMessage);
    return !$('[aria-invalid="true"]');
  }

  // ---- asking ---------------------------------------------------------------------------------------------------

  const headers = () => {
    const key = $("#key").value.trim();
    return key ? { authorization: `Bearer ${key}` } : {};
  };

  class Refused extends Error {
    constructor(message, param = null) {
      super(message);
      this.param = param;
    }
  }

  function parsed(data) {
    try {
      return JSON.parse(data);
    } catch {
      throw new Refused("The server sent something that is no answer.");
    }
  }

  async function* events(response) {
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let held = "";
    let data = [];
    try {
      for (;;) {
        const { done, value } = await reader.read();
        held += done ? decoder.decode() : decoder.decode(value, { stream: true });
        // A carriage return may be the first half of a line's end that is cut here.
        const lines = held.split(/\r\n|\n|\r(?!$)/);
        held = lines.pop();
        for (const line of lines) {
          if (line.startsWith("data:")) data.push(line.slice(5));
          if (line || !data.length) continue;
          const whole = data.join("\n").trim();
          data = [];
          if (whole === "[DONE]") return;
          yield parsed(whole);
        }
        if (done) throw new Refused("The connection ended before the answer did.");
      }
    } finally {
      // Who does not read on hangs up, so that the server stops writing.
      reader.cancel().catch(() => {});
    }
  }

  function body(side) {
    const messages = [{ role: "user", content: $("#question").value }];
    if ($("#system").value) messages.unshift({ role: "system", content: $("#system").value });
    const asked = {
      model: pair ? pair.name : "navtoken",
      messages,
      stream: true,
      logprobs: true,
      top_logprobs: Math.min(ALTERNATIVES, pair ? pair.max_top_logprobs : 0),
      token_details: true,
      temperature: Number($("#temperature").value || 0),
      top_p: Number($("#top_p").value || 1),
    };
    if ($("#seed").value !== "") asked.seed = Math.trunc(Number($("#seed").value));
    if ($("#max_tokens").value !== "") asked.max_tokens = Math.trunc(Number($("#max_tokens").value));
    const policy = chosen(side);
    // The server's own policy comes first. Left as it is, its threshold is the server's to choose: it may depend on the sampling.
    if (policy && (side.moved || policy !== pair.policies[0])) asked.policy = policy.reference;
    if (side.moved) asked.threshold = Number($("input[type=number]", side.fields).value);
    return asked;
  }

  async function ask(side, signal) {
    const policy = chosen(side);
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json", ...headers() },
      body: JSON.stringify(body(side)),
      signal,
    });
    if (!response.ok) {
      const told = await response.json().catch(() => null);
      throw problem(response.status, told, response.headers.get("retry-after"));
    }
    let summary = null;
    for await (const event of events(response)) {
      if (event.error) throw new Refused(event.error.message);
      for (const choice of event.choices || []) {
        const told = choice.navtoken;
        if (!told) continue;
        for (const token of told.tokens || []) side.answer.add(token);
        if (choice.finish_reason) summary = { ...told, finish: choice.finish_reason };
      }
    }
    if (!summary) throw new Refused("The answer ended without its summary.");
    const used = /threshold=([^,]+)/.exec(summary.policy);
    if (used && !side.moved && policy && policy === chosen(side)) set(side, Number(used[1]));
    return summary;
  }

  // ---- an answer ------------------------------------------------------------------------------------------------

  class Answer {
    constructor(section) {
      this.section = section;
      this.text = $(".text", section);
      this.error = $(".error", section);
      this.figures = $(".figures", section);
      this.tokens = [];
      this.waiting = [];
      this.frame = 0;
    }

    clear(title) {
      this.tokens = [];
      this.waiting = [];
      this.text.replaceChildren();
      this.figures.replaceChildren();
      this.error.hidden = true;
      const heading = $("h2", this.section);
      heading.hidden = !title;
      heading.textContent = title || "";
      this.text.classList.add("busy");
    }

    add(token) {
      this.waiting.push(token);
      if (!this.frame) this.frame = requestAnimationFrame(() => this.draw());
    }

    draw() {
      cancelAnimationFrame(this.frame);
      this.frame = 0;
      const fresh = document.createDocumentFragment();
      for (const token of this.waiting) {
        const node = make("span", `t ${token.writer}`, token.special ? END : token.text);
        const level = LEVELS.filter((bound) => token.entropy >= bound).length;
        if (level) node.classList.add(`u${level}`);
        if (token.special) node.classList.add("special");
        if (token.text.includes("\n")) node.classList.add("newline");
        node.dataset.index = this.tokens.length;
        node.tabIndex = this.tokens.length ? -1 : 0;
        node.setAttribute("role", "button");
        node.setAttribute("aria-haspopup", "dialog");
        node.setAttribute("aria-label", `${spelled(token.text)}, ${token.writer.toUpperCase()}`);
        this.tokens.push(token);
        fresh.append(node);
      }
      this.waiting = [];
      this.text.append(fresh);
    }

    end(summary) {
      this.draw();
      this.text.classList.remove("busy");
      const { cost, seconds: took } = summary;
      const total = summary.slm_tokens + summary.llm_tokens;
      const writing = took.total - (took.first_token ?? took.total);
      this.tell([
        ["LLM share", percent(summary.llm_share)],
        ["tokens", `${total}${summary.finish === "length" ? ", cut off" : ""}`],
        ["tokens per second", total > 1 && writing > 0 ? ((total - 1) / writing).toFixed(0) : "–"],
        ["first token after", seconds(took.first_token)],
        ["average activated parameters", short(cost.average_activated_parameters)],
        ["LLM passes", `${cost.llm_passes}`],
        ["catch-up tokens", `${cost.catchup_tokens}`],
        ["FLOPs", short(cost.flops)],
        ["bytes read", short(cost.bytes)],
        ["seed", `${summary.seed}`],
        ["policy", summary.policy, "wide"],
      ]);
    }

    tell(rows) {
      for (const [name, value, style] of rows) {
        const item = make("div", style);
        item.append(make("dt", "", name), make("dd", "", value));
        this.figures.append(item);
      }
    }

    fail(message) {
      this.draw();
      this.text.classList.remove("busy");
      this.error.textContent = message;
      this.error.hidden = false;
      const llm = this.tokens.filter((token) => token.writer === "llm").length;
      if (this.tokens.length) this.tell([["LLM share so far", percent(llm / this.tokens.length)], ["tokens so far", `${this.tokens.length}`]]);
    }
  }

  // ---- the card of a token --------------------------------------------------------------------------------------

  const card = $("#card");
  let shown = null;

  function hide() {
    if (shown) shown.removeAttribute("aria-expanded");
    shown = null;
    card.hidden = true;
  }

  function drafted(token) {
    if (token.draft) return spelled(token.draft.text);
    return token.writer === "llm" && token.entropy_slm !== null ? "the same token" : null;
  }

  function alternatives(token) {
    const table = make("table");
    table.append(make("caption", "", `Alternatives, by the ${token.writer.toUpperCase()}`));
    for (const other of token.alternatives) {
      const written = other.id === token.id;
      const row = make("tr", written ? "written" : "");
      const name = make("th", "", spelled(other.text));
      const mark = written ? " ● written" : token.draft && other.id === token.draft.id ? " ○ draft" : "";
      if (mark) name.append(make("small", "", mark));
      name.scope = "row";
      const chance = make("td", "chance");
      const bar = make("i");
      bar.style.width = `${100 * Math.exp(other.logprob)}%`;
      chance.append(bar);
      row.append(name, chance, make("td", "", percent(Math.exp(other.logprob))));
      table.append(row);
    }
    return table;
  }

  function show(node, answer) {
    if (node === shown) return;
    hide();
    const token = answer.tokens[Number(node.dataset.index)];
    const head = make("p");
    head.append(make("strong", "", spelled(token.text)), ` written by the ${token.writer.toUpperCase()}`);
    const facts = make("dl");
    const fact = (name, value) => value !== null && facts.append(make("dt", "", name), make("dd", "", value));
    fact("the SLM's draft", drafted(token));
    fact("entropy of the SLM", nats(token.entropy_slm));
    fact("entropy of the LLM", nats(token.entropy_llm));
    fact("p(divergent)", token.p_divergent === null ? null : token.p_divergent.toFixed(4));
    fact("probability", token.logprob === null ? null : percent(Math.exp(token.logprob)));
    card.className = token.writer;
    card.replaceChildren(head, facts);
    if (token.alternatives.length) card.append(alternatives(token));
    shown = node;
    node.setAttribute("aria-expanded", "true");
    card.hidden = false;
    const box = node.getClientRects()[0] || node.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - card.offsetWidth - 10);
    const below = box.bottom + 8 + card.offsetHeight < window.innerHeight || box.top < card.offsetHeight + 8;
    card.style.left = `${Math.max(8, left) + window.scrollX}px`;
    card.style.top = `${(below ? box.bottom + 8 : box.top - card.offsetHeight - 8) + window.scrollY}px`;
  }

  function follow(answer) {
    const token = (event) => event.target.closest(".text > .t");
    const box = answer.text;
    const focus = (node) => {
      for (const other of all('.t[tabindex="0"]', box)) other.tabIndex = -1;
      node.tabIndex = 0;
      node.focus({ preventScroll: true });
      show(node, answer);
      node.scrollIntoView({ block: "nearest" });
    };
    const leave = (event) => !card.contains(event.relatedTarget) && hide();
    box.addEventListener("mouseover", (event) => token(event) && !card.contains(document.activeElement) && show(token(event), answer));
    box.addEventListener("mouseleave", (event) => (box.contains(document.activeElement) ? show(document.activeElement, answer) : leave(event)));
    box.addEventListener("click", (event) => token(event) && focus(token(event)));
    box.addEventListener("focusin", (event) => event.target.matches(".t:focus-visible") && show(event.target, answer));
    box.addEventListener("focusout", leave);
    box.addEventListener("keydown", (event) => {
      const node = token(event);
      if (!node || event.ctrlKey || event.metaKey || event.altKey) return;
      const steps = {
        ArrowRight: () => node.nextElementSibling,
        ArrowLeft: () => node.previousElementSibling,
        ArrowDown: () => beside(node, "nextElementSibling"),
        ArrowUp: () => beside(node, "previousElementSibling"),
        Home: () => box.firstElementChild,
        End: () => box.lastElementChild,
        l: () => byLLM(node, "nextElementSibling"),
        L: () => byLLM(node, "previousElementSibling"),
      };
      if (event.key === "Enter" || event.key === " ") {
        show(node, answer);
        card.focus();
      } else if (event.key in steps) {
        const to = steps[event.key]();
        if (to) focus(to);
      } else return;
      event.preventDefault();
    });
  }

  card.addEventListener("focusout", (event) => event.relatedTarget !== shown && hide());
  card.addEventListener("mouseleave", () => !card.contains(document.activeElement) && document.activeElement !== shown && hide());

  function byLLM(node, next) {
    let other = node[next];
    while (other && !other.matches(".llm")) other = other[next];
    return other;
  }

  // The token of the next line that stands nearest.
  function beside(node, next) {
    const here = node.getBoundingClientRect();
    const apart = (one, other) => Math.abs(one.bottom - other.bottom) > here.height / 2;
    let best = null;
    let distance = Infinity;
    let line = null;
    for (let other = node[next]; other; other = other[next]) {
      const box = other.getBoundingClientRect();
      if (!apart(box, here)) continue;
      line = line ?? box;
      if (apart(box, line)) break;
      const far = Math.abs(box.left - here.left);
      if (far < distance) [best, distance] = [other, far];
    }
    return best;
  }

  // ---- policies and thresholds ----------------------------------------------------------------------------------

  const chosen = (side) => (pair ? pair.policies[Number($("select", side.fields).value || 0)] : null);
  const title = (side) => {
    const policy = chosen(side);
    if (!policy) return "";
    return side.moved ? `${policy.reference.split(":")[0]} · threshold ${$("input[type=number]", side.fields).value}` : policy.reference;
  };

  // Probabilities of a router crowd at 0, where a straight slider has no room.
  const bent = (policy, part) => policy.low + (policy.high - policy.low) * part ** 3;
  const straight = (policy, value) => Math.cbrt((value - policy.low) / (policy.high - policy.low));

  function choose(side) {
    const { fields } = side;
    const policy = chosen(side);
    side.moved = false;
    $(".what", fields).textContent = policy.description;
    const box = $(".threshold", fields);
    box.hidden = policy.threshold === null;
    if (box.hidden) return;
    $(".signal", fields).textContent = `${policy.signal}: the LLM writes ${policy.llm_above ? "above" : "below"}`;
    set(side, policy.threshold);
  }

  function set(side, value) {
    const policy = chosen(side);
    const slider = $("input[type=range]", side.fields);
    $("input[type=number]", side.fields).value = Number(value.toPrecision(3));
    slider.value = Math.round(1000 * Math.min(1, Math.max(0, straight(policy, value))));
    slider.setAttribute("aria-valuetext", `${Number(value.toPrecision(3))}`);
  }

  function move(side, value) {
    set(side, value);
    side.moved = true;
  }

  function offer(side, start) {
    const select = $("select", side.fields);
    select.replaceChildren();
    pair.policies.forEach((policy, index) => {
      const option = make("option", "", policy.reference);
      option.value = index;
      select.append(option);
    });
    select.value = Math.max(0, pair.policies.findIndex((policy) => policy.reference === start));
    choose(side);
  }

  async function load() {
    try {
      const response = await fetch("v1/pair", { headers: headers() });
      if (!response.ok) throw problem(response.status, await response.json().catch(() => null), response.headers.get("retry-after"));
      pair = await response.json();
    } catch (error) {
      status(error instanceof Refused ? error.message : "The server does not answer. Is it running?");
      blameFor(error, document);
      return;
    }
    forgive();
    status("");
    $("#pair").textContent =
      `${pair.slm.reference} (SLM, ${short(pair.slm.parameters)} parameters) writes; ${pair.llm.reference} (LLM, ${short(pair.llm.parameters)}) ` +
      "writes the tokens that a policy hands to it.";
    offer(sides[0], pair.policies[0].reference);
    offer(sides[1], "llm");
    $("#max_tokens").placeholder = `up to ${pair.context}`;
    const chips = $("#examples");
    chips.replaceChildren();
    for (const example of pair.examples) {
      const chip = make("button", "", example);
      chip.type = "button";
      chip.addEventListener("click", () => {
        $("#question").value = example;
        $("#question").focus();
      });
      chips.append(chip);
    }
    if (!$("#question").value && pair.examples.length) $("#question").value = pair.examples[0];
  }

  // ---- the whole ------------------------------------------------------------------------------------------------

  const sides = [0, 1].map((number) => ({
    fields: $(`.policy[data-side="${number}"]`),
    answer: new Answer($(`.answer[data-side="${number}"]`)),
    moved: false,
  }));
  const status = (text) => ($("#status").textContent = text);
  const comparing = () => $("#compare").checked;

  // What became of an answer, in words.
  async function one(side, signal) {
    const { answer } = side;
    let summary;
    try {
      summary = await ask(side, signal);
    } catch (error) {
      const stopped = signal.aborted;
      answer.fail(stopped ? "Stopped." : error instanceof Refused ? error.message : "The server went away. Is it running?");
      blameFor(error, side.fields);
      if (!answer.tokens.length) return stopped ? "stopped" : "no answer";
      return `${stopped ? "stopped" : "broken off"} after ${counted(answer.tokens.length)}`;
    }
    answer.end(summary);
    return `${counted(summary.slm_tokens + summary.llm_tokens)}, ${percent(summary.llm_share)} by the LLM`;
  }

  // A button that is switched off drops the focus.
  function toggle(off, on) {
    const held = document.activeElement === off;
    on.disabled = false;
    if (held) on.focus();
    off.disabled = true;
  }

  async function go() {
    if (running || !faultless()) return;
    running = new AbortController();
    hide();
    toggle($("#go"), $("#stop"));
    if (!pair) await load();
    status("Answering…");
    const active = comparing() ? sides : sides.slice(0, 1);
    const titles = active.length > 1 ? active.map(title) : [""];
    active.forEach((side, index) => side.answer.clear(titles[index]));
    try {
      const ends = await Promise.all(active.map((side) => one(side, running.signal)));
      status(ends.map((end, index) => (titles[index] ? `${titles[index]}: ${end}` : end)).join(" · "));
    } finally {
      running = null;
      toggle($("#stop"), $("#go"));
    }
  }

  function arrange() {
    for (const node of all('[data-side="1"]')) node.hidden = !comparing();
  }

  $("#key").value = sessionStorage.getItem(KEY) || "";
  $("#key").addEventListener("change", () => {
    const key = $("#key").value.trim();
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
    load();
  });
  $("#ask").addEventListener("submit", (event) => {
    event.preventDefault();
    go();
  });
  $("#stop").addEventListener("click", () => running && running.abort());
  $("#compare").addEventListener("change", arrange);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) go();
    if (event.key !== "Escape") return;
    if (card.contains(document.activeElement)) shown.focus();
    hide();
  });
  for (const side of sides) {
    const { fields } = side;
    follow(side.answer);
    $("select", fields).addEventListener("change", () => choose(side));
    $("input[type=range]", fields).addEventListener("input", (event) => move(side, bent(chosen(side), event.target.value / 1000)));
    $("input[type=number]", fields).addEventListener("change", ({ target }) =>
      target.value === "" ? choose(side) : move(side, Number(target.value)));
  }
  arrange(); // Browsers keep choices over a reload.
  load();
})();
