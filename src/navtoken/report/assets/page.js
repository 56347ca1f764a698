"use strict";
(() => {
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const card = make("aside");
  card.id = "card";
  card.hidden = true;
  card.setAttribute("aria-live", "polite");
  card.setAttribute("aria-label", "Token");
  document.body.append(card);

  const percent = (p) => (p >= 0.001 ? (100 * p).toFixed(1) : "<0.1") + " %";
  const number = (x) => (Number.isInteger(x) ? String(x) : x.toFixed(3).replace(/^-(0\.0+)$/, "$1"));
  const tokensOf = (box) => [...box.querySelectorAll(":scope > .t")];

  function why(response, index, text) {
    const draft = response.drafts[index];
    const entropies = response.labelled ? response.columns.entropy_slm : response.columns.entropy;
    const entropy = entropies ? entropies[index] : null;
    const unsure = entropy === null || entropy === undefined ? "" : ` at an entropy of ${entropy.toFixed(2)} nats`;
    if (response.labelled && response.drafted[index]) {
      return draft >= 0
        ? `The SLM, reading along, would have written “${text(draft)}”${unsure}; the LLM wrote “${text(response.tokens[index])}”.`
        : `The SLM, reading along, would have written the same token${unsure}.`;
    }
    if (response.writer[index] === 0) return `Written by the SLM${unsure}.`;
    if (draft >= 0) return `The SLM drafted “${text(draft)}”${unsure}; policy ${response.policy} handed the token to the LLM, which wrote “${text(response.tokens[index])}”.`;
    if (response.drafted[index])
      return `The SLM drafted the same token${unsure}; policy ${response.policy} handed it to the LLM, which agreed.`;
    return `Written by the LLM${unsure}.`;
  }

  function alternatives(rows, text, whose) {
    const table = make("table");
    const caption = make("caption", "", `Alternatives, by the ${whose}`);
    table.append(caption);
    for (const [name, p, written, draft] of rows) {
      const row = make("tr", written ? "written" : "");
      const label = make("td");
      label.append(make("code", "", text(name)), (written ? " ● written" : "") + (draft && !written ? " ○ draft" : ""));
      const chance = make("td", "chance");
      const bar = make("i");
      bar.style.width = `${100 * p}%`;
      chance.append(bar);
      row.append(label, chance, make("td", "num", percent(p)));
      table.append(row);
    }
    return table;
  }

  function branches([llm, llmRest, slm, slmRest]) {
    const pair = make("div", "branch-pair");
    for (const [who, name, token, rest] of [["llm", "LLM", llm, llmRest], ["slm", "from the SLM's token", slm, slmRest]]) {
      const side = make("div", who);
      const line = make("p", "context");
      line.append(make("mark", "", token), rest);
      side.append(make("h6", "", name), line);
      pair.append(side);
    }
    return pair;
  }

  function fill(data, response, index) {
    const text = (at) => data.texts[at];
    const llm = response.writer[index] === 1;
    const head = make("h5");
    head.append(make("code", "", text(response.tokens[index])), make("span", llm ? "by llm" : "by slm", llm ? "▲ LLM" : "SLM"));
    const facts = make("dl");
    for (const [name, values] of Object.entries(response.columns)) {
      if (name === "entropy" || values[index] === null) continue;
      facts.append(make("dt", "", data.names[name] || name), make("dd", "", data.classes[name] ? data.classes[name][values[index]] : number(values[index])));
    }
    facts.append(make("dt", "", "position"), make("dd", "", `${index + 1} of ${response.num}`));
    const rows = response.alternatives[index];
    const branch = response.branches[index];
    card.classList.toggle("wide", Boolean(branch));
    card.replaceChildren(
      head,
      make("p", "", why(response, index, text)),
      ...(branch ? [branches(branch)] : []),
      ...(rows.length ? [alternatives(rows, text, llm ? "LLM" : "SLM")] : []),
      facts,
    );
  }

  function place(token) {
    const at = token.getClientRects()[0];
    card.hidden = false;
    const left = Math.max(8, Math.min(at.left, innerWidth - card.offsetWidth - 8));
    const below = at.bottom + 8;
    const fits = below + card.offsetHeight < innerHeight;
    card.style.left = `${left}px`;
    card.style.top = `${fits ? below : Math.max(8, at.top - card.offsetHeight - 8)}px`;
  }

  for (const viewer of document.querySelectorAll(".viewer")) {
    const data = JSON.parse(document.getElementById(viewer.dataset.json).textContent);
    const form = viewer.querySelector(".controls");
    const problems = [...viewer.querySelectorAll(".problem")];

    const show = (token) => {
      const box = token.parentElement;
      viewer.querySelectorAll(".t.here").forEach((other) => other.classList.remove("here"));
      token.classList.add("here");
      fill(data, data.responses[box.dataset.response], tokensOf(box).indexOf(token));
      place(token);
    };
    const hide = () => {
      viewer.querySelectorAll(".t.here").forEach((other) => other.classList.remove("here"));
      card.hidden = true;
    };
    const move = (box, token, target) => {
      if (!target) return;
      token.tabIndex = -1;
      tokensOf(box).forEach((other) => (other.tabIndex = other === target ? 0 : -1));
      target.focus({ preventScroll: true });
      target.scrollIntoView({ block: "nearest", behavior: "instant" });
      show(target);
    };
    const tokenOf = (event) => event.target.closest(".tokens > .t");
    const focused = () => (viewer.contains(document.activeElement) ? document.activeElement.closest(".tokens > .t") : null);

    viewer.addEventListener("mouseover", (event) => tokenOf(event) && show(tokenOf(event)));
    viewer.addEventListener("mouseout", (event) => tokenOf(event) && (focused() ? show(focused()) : hide()));
    viewer.addEventListener("focusin", (event) => tokenOf(event) && show(tokenOf(event)));
    viewer.addEventListener("focusout", hide);
    viewer.addEventListener("click", (event) => tokenOf(event) && move(tokenOf(event).parentElement, tokenOf(event), tokenOf(event)));
    viewer.addEventListener("keydown", (event) => {
      const token = tokenOf(event);
      if (!token || event.ctrlKey || event.altKey || event.metaKey) return;
      const all = tokensOf(token.parentElement);
      const at = all.indexOf(token);
      const after = (name) => all.findIndex((other, i) => i > at && other.classList.contains(name));
      const before = (name) => all.findLastIndex((other, i) => i < at && other.classList.contains(name));
      const targets = {
        ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1,
        l: after("llm"), L: before("llm"), f: after("fork"), F: before("fork"),
      };
      if (event.key === "Escape") hide();
      else if (event.key in targets) move(token.parentElement, token, all[targets[event.key]]);
      else return;
      event.preventDefault();
    });

    const filter = () => {
      const policies = new Set([...form.querySelectorAll("[name=policy]:checked")].map((box) => box.value));
      const task = form.elements.task ? form.elements.task.value : "";
      const outcome = form.elements.outcome.value;
      let shown = 0;
      for (const problem of problems) {
        const fits = (!task || problem.dataset.task === task) && (outcome !== "split" || "split" in problem.dataset);
        let some = false;
        for (const response of problem.querySelectorAll(".response")) {
          const right = !outcome || outcome === "split" || response.dataset.outcome === outcome;
          response.hidden = !(fits && right && policies.has(response.dataset.policy));
          some = some || !response.hidden;
          shown += response.hidden ? 0 : 1;
        }
        problem.hidden = !some;
      }
      form.querySelector(".shown").textContent = `${shown} of ${data.responses.length} responses`;
      viewer.classList.toggle("no-drafts", !form.elements.drafts.checked);
    };
    const strength = (name, value) => {
      if (value === null || value === undefined || value === data.voids[name]) return 0;
      const size = Math.min(1, Math.abs(value) / data.scales[name]);
      return data.inverted.includes(name) ? 1 - size : size;
    };
    const standsOut = (name, value) => {
      const line = data.lines[name];
      if (line === undefined || value === null || value === undefined || value === data.voids[name]) return false;
      return data.inverted.includes(name) ? value <= line : value >= line;
    };
    const strip = (response, name, values) => {
      const d = { true: "", false: "" };
      values.forEach((value, i) => {
        const height = 20 * strength(name, value);
        if (height >= 1) d[standsOut(name, value)] += `M${i},20v-${height.toFixed(1)}h.9V20z`;
      });
      response.querySelector(".strip .bars:not(.forks)").setAttribute("d", d.false);
      response.querySelector(".strip .forks").setAttribute("d", d.true);
    };
    const shade = () => {
      const name = form.elements.shade.value;
      for (const box of viewer.querySelectorAll(".tokens")) {
        const values = data.responses[box.dataset.response].columns[name] || [];
        tokensOf(box).forEach((token, i) => {
          token.style.setProperty("--e", strength(name, values[i]).toFixed(2));
          token.classList.toggle("fork", standsOut(name, values[i]));
        });
        strip(box.parentElement, name, values);
      }
      const [from, to, line] = data.words[name];
      viewer.querySelector(".legend .from").textContent = from;
      viewer.querySelector(".legend .to").textContent = to;
      viewer.querySelector(".legend .line-words").textContent = line;
      viewer.querySelector(".legend .line-key").hidden = !line;
      viewer.classList.toggle("lined", Boolean(line));
    };
    form.hidden = false;
    form.reset(); // Browsers keep choices over a reload; the text is shaded as at first.
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", (event) => (event.target.name === "shade" ? shade() : filter()));
    filter();
  }
  addEventListener("scroll", () => {
    const here = document.querySelector(".t.here");
    if (here && !card.hidden) place(here);
  }, { passive: true });
})();
