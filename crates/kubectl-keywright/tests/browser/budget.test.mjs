// 5,000 keys: what is in the DOM, what a keystroke touches, and how long people wait. Figures go to target/screenshots/budget.md.
// The times are no pass marks: this machine may be doing something else.

import assert from "node:assert/strict";
import { writeFileSync, mkdirSync } from "node:fs";
import { after, test } from "node:test";
import { closeBrowser, ready, stage, visit } from "./stage.mjs";

after(closeBrowser);

const now = Math.floor(Date.now() / 1000);
const row = (number) => ({
  uid: `0b0e7a4c-93d1-4f5e-8a6b-${String(number).padStart(12, "0")}`, namespace: "team-a", name: `service-${number}`, display: `Service ${number}`, description: "What this key is for, in a sentence",
  owner: `person-${number % 40}@example.org`, key: `keyw1_${String(number).padStart(8, "x")}`, created: now - 5000 * number, used: now - 61 * number, expires: number % 9 ? now + 86_400 * number : undefined,
  ips: number % 7 ? ["10.0.0.0/8", "2001:db8::/48"] : undefined, state: "Active", tone: "good", hints: number % 9 ? undefined : ["no end"],
});

/** What the server says of this many keys. */
function feed(count) {
  const messages = [{ now }];
  for (let first = 0; first < count; first += 500) {
    messages.push({ rows: Array.from({ length: Math.min(500, count - first) }, (_, index) => row(first + index)) });
  }
  return [...messages, { complete: true }].map((message) => `${JSON.stringify(message)}\n`);
}

/** A page with this many made-up keys, and what it has measured. */
async function withKeys(count) {
  const visited = await visit("ann", {
    before: (page) => page.addInitScript((body) => {
      window.longTasks = [];
      new PerformanceObserver((list) => longTasks.push(...list.getEntries().map(({ duration }) => duration))).observe({ entryTypes: ["longtask"] });
      const reach = window.fetch;
      window.fetch = (path, options) =>
        String(path).startsWith("/api/feed")
          ? Promise.resolve(new Response(new ReadableStream({ start: (to) => body.forEach((line) => to.enqueue(new TextEncoder().encode(line))) })))
          : reach(path, options);
    }, feed(count)),
  });
  await (count ? ready(visited.page) : visited.page.getByText(/^No API keys/).waitFor());
  return visited;
}

const median = (numbers) => [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)];
const firstPaint = (page) => page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime);

/** The time from a keystroke to the next frame after it, and the rows that it touched. */
async function keystrokes(page) {
  return page.evaluate(async () => {
    const search = document.getElementById("search");
    const body = document.querySelector("#list tbody");
    const times = [];
    const touched = [];
    for (const text of ["s", "se", "ser", "service-1", "service-12", "service-123", "service-12", "person-7", "person-7 10.0", "zzz", "", "2001", ""]) {
      const changes = new Set();
      const observer = new MutationObserver((records) => records.forEach(({ target, addedNodes, removedNodes }) => {
        for (const node of [...addedNodes, ...removedNodes]) changes.add(node);
        if (target !== body) changes.add(target.closest?.("tr"));
      }));
      observer.observe(body, { childList: true, subtree: true });
      const started = performance.now();
      search.value = text;
      search.dispatchEvent(new Event("input"));
      document.body.getBoundingClientRect();
      times.push(performance.now() - started);
      await new Promise((next) => requestAnimationFrame(() => setTimeout(next)));
      observer.disconnect();
      touched.push([...document.querySelectorAll("#list tbody tr")].filter((row) => changes.has(row)).length);
    }
    return { times, touched };
  });
}

test("5,000 keys cost what people do not notice", async () => {
  const paints = { none: [], many: [] };
  for (let round = 0; round < 5; round++) {
    for (const [kind, count] of [["none", 0], ["many", 5000]]) {
      const { page, context } = await withKeys(count);
      paints[kind].push(await firstPaint(page));
      await context.close();
    }
  }
  const few = await withKeys(100);
  const fewTimes = (await keystrokes(few.page)).times;
  await few.context.close();

  // Each keystroke's best of three pages: this machine may be doing something else.
  const rounds = [];
  for (let round = 0; round < 3; round++) {
    const { page, context } = await withKeys(5000);
    const loading = await page.evaluate(() => longTasks.splice(0));
    rounds.push({ page, context, loading, ...(await keystrokes(page)) });
    if (round < 2) await context.close();
  }
  const { page, context } = rounds.at(-1);
  const times = rounds[0].times.map((_, index) => Math.min(...rounds.map((round) => round.times[index])));
  const touched = rounds.flatMap((round) => round.touched);
  const loading = rounds.map((round) => Math.round(Math.max(0, ...round.loading)));
  await page.getByRole("searchbox").fill("");
  const elements = await page.evaluate(() => document.querySelectorAll("*").length);
  await page.getByRole("button", { name: "Show 100 more" }).click();
  assert.equal(await page.locator("tbody tr").count(), 200);
  const octets = new TextEncoder().encode(JSON.stringify(row(1))).length;
  const lines = [
    `first paint: ${median(paints.many).toFixed(0)} ms with 5,000 keys, ${median(paints.none).toFixed(0)} ms with none`,
    `keystroke: median ${median(times).toFixed(1)} ms, worst ${Math.max(...times).toFixed(1)} ms; with 100 keys median ${median(fewTimes).toFixed(1)} ms`,
    `elements: ${elements}; rows touched by a keystroke: at most ${Math.max(...touched)}; a row on the wire: ${octets} octets`,
    `longest task over 50 ms while loading, of three pages: ${loading}`,
  ];
  mkdirSync(stage.shots, { recursive: true });
  writeFileSync(`${stage.shots}/budget.md`, `${lines.join("\n")}\n`);
  console.log(lines.join("\n"));
  assert.ok(elements <= 2500, `${elements} elements`);
  assert.ok(Math.max(...touched) <= 100, `${touched}`);
  assert.ok(octets <= 400, `${octets} octets`);
  await context.close();
});
