// Each state at three widths, light and dark: a picture, axe, and no sideways scroll.

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { closeBrowser, inspect, kubectl, listed, outage, ready, shoot, stage, visit } from "./stage.mjs";

after(closeBrowser);

const WIDTHS = [1280, 800, 400];
const SCHEMES = ["light", "dark"];

const open = (name, then = async () => {}) => async (page) => {
  await ready(page);
  await listed(page, name).click();
  await page.locator("#details dl").waitFor();
  await then(page);
};
const creating = (then = async () => {}) => async (page) => {
  await ready(page);
  await page.getByRole("button", { name: "Create API key" }).click();
  await page.getByText(/^Refused from/).waitFor();
  await then(page);
};
let numbers = 0;
/** A key that is really made, each time another. */
const made = (deliver, then = async () => {}) => async (page) => {
  await page.getByRole("textbox", { name: "Name", exact: true }).fill(`Release build ${++numbers}`);
  await page.getByText(deliver).click();
  await page.getByRole("button", { name: "Create key" }).click();
  await page.getByText(/^Every verifier accepts it/).waitFor();
  await then(page);
};
/** Has the server say something else about the feed, before the page asks. */
const feed = (...messages) => async (page) => {
  const body = messages.map((message) => JSON.stringify(message) + "\n").join("");
  await page.addInitScript((body) => {
    const reach = window.fetch;
    window.fetch = (path, options) =>
      String(path).startsWith("/api/feed")
        ? Promise.resolve(new Response(new ReadableStream({ start: (to) => to.enqueue(new TextEncoder().encode(body)) })))
        : reach(path, options);
  }, body);
};
const now = Math.floor(Date.now() / 1000);
const row = (number, more = {}) => ({ uid: `u${number}`, namespace: "team-a", name: `key-${number}`, display: `Key ${number}`, owner: "ann@example.org", key: "keyw1_7Tq2mZx9", created: now - 86_400 * number, used: now - 300 * number, expires: now + 86_400 * number, state: "Active", tone: "good", ...more });
const STATES = ["Active", "Rotating", "Suspended", "Expired", "Issuing", "Revoking", "MintBudget", "Invalid", "SecretNameTaken", "DigestTaken", "DigestRevoked", "SourceUnusable", "New", "Shielded"];
const TONES = { Active: "good", Rotating: "good", Issuing: "info", Revoking: "info", MintBudget: "warn", Invalid: "bad", SecretNameTaken: "bad", DigestTaken: "bad", DigestRevoked: "bad", SourceUnusable: "bad" };
const longest = row(99, {
  name: "n".repeat(253), display: "W".repeat(128), owner: "o".repeat(128), key: "sha256:1f2e3d4c5b6a", description: "d ".repeat(512),
  ips: Array.from({ length: 256 }, (_, index) => `2001:db8:1111:2222:3333:4444:5555:${index.toString(16)}/128`), hints: ["unused", "no end", "any address", "expires soon", "old key in use"], lagging: true,
});
const visible = (text) => (page) => page.getByText(text).waitFor();

const SCENES = {
  list: { act: ready },
  filtered: { act: async (page) => { await ready(page); await page.getByRole("searchbox").fill("nothing like it"); await page.getByText("No key matches.").waitFor(); } },
  details: { act: open("Billing export") },
  "details-unfolded": { act: open("Old cron", async (page) => { for (const fold of ["Conditions", "Events"]) await page.locator("summary", { hasText: fold }).click(); }) },
  "details-bad": { act: open("Name is taken") },
  create: { act: creating() },
  "create-wrong": { act: creating(async (page) => { await page.getByLabel("Allowed addresses").fill("10.0.0.1/8, 10.0.0.0/8, home"); await page.getByText(/Entry 1 has host bits/).waitFor(); await page.getByRole("button", { name: "Create key" }).click(); await page.getByText("Give it a name.").waitFor(); }) },
  delivered: { act: creating(made("Into a Secret")) },
  once: { act: creating(made("Show me once, keep a digest", async (page) => { await page.keyboard.press("Escape"); await page.getByText("Close? You cannot see this key again.").waitFor(); })) },
  edit: { act: open("Billing export", async (page) => { await page.getByRole("button", { name: "Change expiry" }).click(); await page.getByText("30 days", { exact: true }).click(); await page.getByText(/^Refused from/).waitFor(); }) },
  revoke: { act: open("Old cron", async (page) => { await page.getByRole("button", { name: "Revoke..." }).click(); await page.getByText(/^Used /).last().waitFor(); }) },
  "all-namespaces": { person: "administrator", act: async (page) => {
    await ready(page);
    await page.getByLabel("Namespace").selectOption("All namespaces");
    await page.getByRole("searchbox").fill(stage.namespace);
    await listed(page, "Old cron").waitFor();
    await page.locator("tbody tr").first().getByText(stage.namespace).filter({ visible: true }).waitFor();
    assert.equal(new URLSearchParams(new URL(page.url()).hash.slice(1)).get("namespace"), "*");
  } },
  "read-only": { person: "viewer", act: async (page) => { await ready(page); await page.getByText("You may look, not change: ask for keywright-admin.").waitFor(); assert.equal(await page.getByRole("button", { name: "Create API key" }).count(), 0); } },
  "read-only-details": { person: "viewer", act: open("Old cron", async (page) => { assert.equal(await page.getByRole("button", { name: /Change|Rotate|Suspend|Revoke/ }).count(), 0); await page.locator("summary", { hasText: "Events" }).click(); await page.getByText(/you may not list events/).waitFor(); }) },
  forbidden: { person: "nobody", act: (page) => page.getByText(`You may not see API keys in ${stage.namespace}. Ask for keywright-view.`).waitFor() },
  empty: { person: "administrator", fragment: "namespace=kube-public", act: visible("No API keys in kube-public yet.") },
  loading: { person: "remote", fragment: `namespace=${stage.many}`, before: () => outage("long lists are slow"), act: visible("Loading... 1,500"), after: () => outage("nothing") },
  "not-installed": { person: "elsewhere", act: visible("Keywright is not installed here.") },
  lost: { person: "remote", act: async (page) => { await ready(page); await outage("unreachable"); await page.getByText(/^As of \d\d:\d\d\. Next try in \d+ s\. The API server/).waitFor(); assert.ok((await page.locator("tbody tr").count()) > 5, "rows stay"); }, after: () => outage("nothing") },
  states: { before: feed({ now }, { rows: STATES.map((state, index) => row(index, { state, tone: TONES[state] ?? "quiet", display: `In state ${state}` })) }, { complete: true }), act: ready },
  "longest-details": { person: "administrator", fragment: `namespace=${stage.long}&search=nnnn`, act: open("W".repeat(128), (page) => page.locator("summary", { hasText: "256 addresses" }).click()) },
  longest: { before: feed({ now }, { rows: [longest, row(1)] }, { complete: true }), act: ready },
};

for (const [name, { person = "ann", fragment, before: prepare, act, after: mend = () => {} }] of Object.entries(SCENES)) {
  test(name, async () => {
    for (const scheme of SCHEMES) {
      for (const width of WIDTHS) {
        const { page, problems } = await visit(person, { fragment, before: prepare, viewport: { width, height: width === 400 ? 860 : 800 }, colorScheme: scheme, reducedMotion: "reduce" });
        await act(page);
        await page.waitForTimeout(50);
        await shoot(page, `${name}-${width}-${scheme}`);
        await inspect(page, `${name} at ${width} px, ${scheme}`);
        const primary = await page.evaluate(() => {
          const view = document.querySelector("dialog[open]") ?? document.body;
          return [...view.querySelectorAll(".primary, .danger")].filter((one) => one.checkVisibility()).length;
        });
        assert.ok(primary <= 1, `${name}: ${primary} primary buttons`);
        assert.deepEqual(problems, [], name);
        await page.context().close();
        await mend();
      }
    }
  });
}

test("in forced colours, what is chosen, focused or wrong is still seen", async () => {
  for (const scheme of SCHEMES) {
    for (const [name, scene] of Object.entries({ list: open("Old cron", (page) => page.getByRole("button", { name: /unused/ }).click()), "create-wrong": SCENES["create-wrong"].act, revoke: SCENES.revoke.act, once: SCENES.once.act })) {
      const { page } = await visit("ann", { forcedColors: "active", colorScheme: scheme });
      await scene(page);
      await shoot(page, `forced-${name}-1280-${scheme}`);
      const unseen = await page.evaluate(() => {
        const stands = (node) => [getComputedStyle(node), getComputedStyle(node, "::after")].some(({ outlineStyle, outlineWidth }) => outlineStyle !== "none" && parseFloat(outlineWidth) >= 2);
        const marked = document.querySelectorAll(`tr.chosen, #hints [aria-pressed="true"], .choices label:has(:checked), [aria-invalid="true"], :focus-visible`);
        return [...marked].filter((node) => node.checkVisibility() && !node.matches("h2") && !stands(node)).map(({ outerHTML }) => outerHTML.slice(0, 120));
      });
      assert.deepEqual(unseen, [], name);
      await page.context().close();
    }
  }
});

test("after an outage, what has happened meanwhile is shown", async () => {
  const { page } = await visit("remote");
  await ready(page);
  await outage("unreachable");
  // Each try comes later than the one before: nothing was heard.
  await page.getByText(/^As of .+ Next try in 5 s\. The API server/).waitFor();
  await page.getByText(/^As of .+ Next try in 10 s\. The API server/).waitFor();
  kubectl("patch", "apikey", "paused", "--type", "merge", "--patch", JSON.stringify({ spec: { displayName: "Renamed meanwhile" } }));
  await outage("nothing");
  await listed(page, "Renamed meanwhile").waitFor();
  await page.locator("#age").waitFor({ state: "hidden" });
  await page.context().close();
});

test("a plugin that is silent is said so, until it speaks again, and one that has refused is not", async () => {
  const { page } = await visit("viewer", { before: (page) => page.clock.install() });
  await ready(page);
  process.kill(stage.processes.viewer, "SIGSTOP");
  try {
    await page.clock.fastForward(41_000);
    await page.getByText("The plugin is silent: this may be old.").waitFor();
    assert.ok((await page.locator("tbody tr").count()) > 5);
  } finally {
    process.kill(stage.processes.viewer, "SIGCONT");
  }
  await page.locator("#age").waitFor({ state: "hidden" });
  await page.context().close();
  const { page: refused } = await visit("nobody", { before: (page) => page.clock.install() });
  await refused.getByText(/^You may not see API keys/).waitFor();
  await refused.clock.fastForward(41_000);
  assert.ok(await refused.locator("#age").isHidden());
  await refused.context().close();
});

test("a plugin that has ended is said so, and what is shown stays", async () => {
  const { page } = await visit("viewer");
  await ready(page);
  process.kill(stage.processes.viewer, "SIGKILL");
  await page.getByText("The plugin has ended. Run kubectl keywright ui again.").waitFor();
  assert.ok((await page.locator("tbody tr").count()) > 5);
  await shoot(page, "ended-1280-light");
  await inspect(page, "ended");
  await page.context().close();
});
