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
  let pair = null;
  let running = null;

  // ---- words ----------------------------------------------------------------------------------------------------

  const percent = (p) => (p >= 0.9995 || p === 0 || p >= 0.001 ? (100 * p).toFixed(1) : "<0.1") + " %";
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
    const where = said.param ? ` (${said.param})` : "";
    if (status === 401) return "The server wants its API key, and this is not it: enter it under “Sampling and access”.";
    if (status === 429) return `The server is full. Try again in ${retry || "a few"} seconds.`;
    if (status === 503) return `The server cannot answer now: ${said.message || "it is not ready"}.`;
    return `${said.message || `the server answered ${status}`}${where}`;
  }

  // ---- asking ---------------------------------------------------------------------------------------------------

  const headers = () => {
    const key = $("#key").value.trim();
    return key ? { authorization: `Bearer ${key}` } : {};
  };

  class Refused extends Error {}

  async function* events(response) {
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let held = "";
    for (;;) {
      const { done, value } = await reader.read();
      held += done ? decoder.decode() : decoder.decode(value, { stream: true });
      // A carriage return may be the first half of a line's end that is cut here.
      let lines = held.split(/\r\n|\n|\r(?!$)/);
      held = done ? "" : lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
      if (done) throw new Refused("The connection ended before the answer did.");
    }
  }

  function body(side) {
    const fields = side.fields;
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
    const policy = chosen(fields);
    if (policy) asked.policy = policy.reference;
    if (policy && policy.threshold !== null) asked.threshold = Number($("input[type=number]", fields).value);
    return asked;
  }

  async function ask(side, signal) {
    const asked = body(side);
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json", ...headers() },
      body: JSON.stringify(asked),
      signal,
    });
    if (!response.ok) {
      const told = await response.json().catch(() => null);
      throw new Refused(problem(response.status, told, response.headers.get("retry-after")));
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
        const node = make("span", `t ${token.writer}`, token.text);
        const level = LEVELS.filter((bound) => token.entropy >= bound).length;
        if (level) node.classList.add(`u${level}`);
        if (/^<\|?[^<>\s]+\|?>$/.test(token.text)) node.classList.add("special");
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
      if (!summary) return;
      const { cost, seconds: took } = summary;
      const total = summary.slm_tokens + summary.llm_tokens;
      const writing = took.total - (took.first_token ?? took.total);
      const rows = [
        ["LLM share", percent(summary.llm_share)],
        ["tokens", `${total}${summary.finish === "length" ? ", cut off" : ""}`],
        ["tokens per second", total > 1 && writing > 0 ? ((total - 1) / writing).toFixed(0) : "–"],
        ["first token after", seconds(took.first_token)],
        ["activated parameters", short(cost.average_activated_parameters)],
        ["LLM passes", `${cost.llm_passes}`],
        ["catch-up tokens", `${cost.catchup_tokens}`],
        ["FLOPs", short(cost.flops)],
        ["bytes read", short(cost.bytes)],
        ["seed", `${summary.seed}`],
      ];
      for (const [name, value] of rows) {
        const item = make("div");
        item.append(make("dt", "", name), make("dd", "", value));
        this.figures.append(item);
      }
    }

    fail(message) {
      this.draw();
      this.text.classList.remove("busy");
      this.error.textContent = message;
      this.error.hidden = false;
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

  function show(node, answer) {
    hide();
    const token = answer.tokens[Number(node.dataset.index)];
    if (!token) return;
    const head = make("p");
    head.append(make("strong", "", spelled(token.text)), ` written by the ${token.writer.toUpperCase()}`);
    const facts = make("dl");
    const fact = (name, value) => facts.append(make("dt", "", name), make("dd", "", value));
    if (token.draft) fact("the SLM's draft", spelled(token.draft.text));
    fact("entropy of the SLM", nats(token.entropy_slm));
    fact("entropy of the LLM", nats(token.entropy_llm));
    if (token.p_divergent !== null) fact("p(divergent)", token.p_divergent.toFixed(4));
    if (token.logprob !== null) fact("probability", percent(Math.exp(token.logprob)));
    card.replaceChildren(head, facts);
    if (token.alternatives.length) {
      const table = make("table");
      table.append(make("caption", "", `Alternatives, by the ${token.writer.toUpperCase()}`));
      for (const other of token.alternatives) {
        const row = make("tr");
        const bar = make("meter");
        bar.value = Math.exp(other.logprob);
        bar.setAttribute("aria-hidden", "true");
        const cell = make("td");
        cell.append(bar);
        const name = make("th", "", spelled(other.text));
        name.scope = "row";
        row.append(name, cell, make("td", "", percent(Math.exp(other.logprob))));
        table.append(row);
      }
      card.append(table);
    }
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
    box.addEventListener("mouseover", (event) => token(event) && show(token(event), answer));
    box.addEventListener("mouseleave", () => !box.contains(document.activeElement) && hide());
    box.addEventListener("click", (event) => token(event) && (focus(token(event)), show(token(event), answer)));
    box.addEventListener("focusin", (event) => token(event) && event.target.matches(":focus-visible") && show(token(event), answer));
    box.addEventListener("focusout", hide);
    box.addEventListener("keydown", (event) => {
      const node = token(event);
      if (!node) return;
      const last = box.lastElementChild;
      const step = { ArrowRight: node.nextElementSibling, ArrowLeft: node.previousElementSibling, Home: box.firstElementChild, End: last };
      const vertical = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const to = vertical ? beside(node, vertical) : step[event.key];
      if (event.key === "Enter" || event.key === " ") show(node, answer);
      else if (event.key === "Escape") hide();
      else if (to) focus(to);
      else return;
      event.preventDefault();
    });
    const focus = (node) => {
      for (const other of all('.t[tabindex="0"]', box)) other.tabIndex = -1;
      node.tabIndex = 0;
      node.focus();
    };
  }

  // The token of the next line that stands nearest.
  function beside(node, direction) {
    const here = node.getBoundingClientRect();
    let best = null;
    let distance = Infinity;
    const next = (other) => (direction > 0 ? other.nextElementSibling : other.previousElementSibling);
    let line = null;
    for (let other = next(node); other; other = next(other)) {
      const box = other.getBoundingClientRect();
      if (Math.abs(box.top - here.top) < 4) continue;
      line = line ?? box.top;
      if (Math.abs(box.top - line) > 4) break;
      const far = Math.abs(box.left - here.left);
      if (far < distance) [best, distance] = [other, far];
    }
    return best;
  }

  // ---- policies and thresholds ----------------------------------------------------------------------------------

  const chosen = (fields) => (pair ? pair.policies[Number($("select", fields).value || 0)] : null);
  const title = (side) => {
    const policy = chosen(side.fields);
    if (!policy) return "";
    return policy.threshold === null ? policy.reference : `${policy.reference.split(":")[0]} · threshold ${$("input[type=number]", side.fields).value}`;
  };

  // Probabilities of a router crowd at 0, where a straight slider has no room.
  const bent = (policy, part) => policy.low + (policy.high - policy.low) * part ** 3;
  const straight = (policy, value) => Math.cbrt((value - policy.low) / (policy.high - policy.low));

  function choose(fields) {
    const policy = chosen(fields);
    $(".what", fields).textContent = policy.description;
    const box = $(".threshold", fields);
    box.hidden = policy.threshold === null;
    if (box.hidden) return;
    $(".signal", fields).textContent = `${policy.signal}: the LLM writes ${policy.llm_above ? "above" : "below"}`;
    set(fields, policy.threshold);
  }

  function set(fields, value) {
    const policy = chosen(fields);
    const slider = $("input[type=range]", fields);
    $("input[type=number]", fields).value = Number(value.toPrecision(4));
    slider.value = Math.round(1000 * Math.min(1, Math.max(0, straight(policy, value))));
    slider.setAttribute("aria-valuetext", `${Number(value.toPrecision(4))}`);
  }

  function offer(fields, start) {
    const select = $("select", fields);
    select.replaceChildren();
    pair.policies.forEach((policy, index) => {
      const option = make("option", "", policy.reference);
      option.value = index;
      select.append(option);
    });
    select.value = Math.max(0, pair.policies.findIndex((policy) => policy.reference === start));
    choose(fields);
  }

  async function load() {
    try {
      const response = await fetch("v1/pair", { headers: headers() });
      if (!response.ok) throw new Refused(problem(response.status, await response.json().catch(() => null)));
      pair = await response.json();
    } catch (error) {
      status(error instanceof Refused ? error.message : "The server does not answer. Is it running?");
      return;
    }
    status("");
    $("#pair").textContent =
      `${pair.slm.reference} (SLM, ${short(pair.slm.parameters)} parameters) writes; ${pair.llm.reference} (LLM, ${short(pair.llm.parameters)}) ` +
      "writes the tokens that a policy hands to it.";
    offer(sides[0].fields, pair.policies[0].reference);
    offer(sides[1].fields, "llm");
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
  }));
  const status = (text) => ($("#status").textContent = text);
  const comparing = () => $("#compare").checked;

  function said(side, summary, both) {
    const name = both ? `${title(side)}: ` : "";
    if (!summary) return `${name}no answer`;
    return `${name}${summary.slm_tokens + summary.llm_tokens} tokens, ${percent(summary.llm_share)} by the LLM`;
  }

  async function one(side, signal) {
    try {
      const summary = await ask(side, signal);
      side.answer.end(summary);
      return summary;
    } catch (error) {
      if (error.name === "AbortError") side.answer.fail("Stopped.");
      else if (error instanceof Refused) side.answer.fail(error.message);
      else side.answer.fail("The server went away. Is it running?");
      return null;
    }
  }

  async function go() {
    if (running || !$("#question").value.trim()) return;
    if (!pair) await load();
    running = new AbortController();
    hide();
    const active = comparing() ? sides : sides.slice(0, 1);
    $("#go").disabled = true;
    $("#stop").disabled = false;
    status("Answering…");
    for (const side of active) side.answer.clear(active.length > 1 ? title(side) : "");
    const summaries = await Promise.all(active.map((side) => one(side, running.signal)));
    status(active.map((side, index) => said(side, summaries[index], active.length > 1)).join(" · "));
    running = null;
    $("#go").disabled = false;
    $("#stop").disabled = true;
  }

  $("#key").value = sessionStorage.getItem(KEY) || "";
  $("#key").addEventListener("change", () => {
    sessionStorage.setItem(KEY, $("#key").value.trim());
    load();
  });
  $("#ask").addEventListener("submit", (event) => {
    event.preventDefault();
    go();
  });
  $("#stop").addEventListener("click", () => running && running.abort());
  $("#compare").addEventListener("change", () => {
    for (const node of all('[data-side="1"]')) node.hidden = !comparing();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) go();
    if (event.key === "Escape") hide();
  });
  for (const side of sides) {
    const { fields } = side;
    follow(side.answer);
    $("select", fields).addEventListener("change", () => choose(fields));
    $("input[type=range]", fields).addEventListener("input", (event) => set(fields, bent(chosen(fields), event.target.value / 1000)));
    $("input[type=number]", fields).addEventListener("change", (event) => set(fields, Number(event.target.value) || 0));
  }
  load();
})();
