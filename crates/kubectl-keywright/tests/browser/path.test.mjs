// A person's whole path: look, create, take, edit, rotate, revoke; by mouse, then by keyboard alone.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { after, test } from "node:test";
import { apply, closeBrowser, kubectl, listed, ready, shoot, stage, until, verify, visit } from "./stage.mjs";

after(closeBrowser);

const fromSecret = (name) => Buffer.from(kubectl("get", "secret", name, "--output", "jsonpath={.data.api-key}"), "base64").toString();
const names = (page) => page.locator("tbody th button").allTextContents();

test("the list is searched, filtered and sorted, and the address keeps how", async () => {
  const { page, problems } = await visit("ann");
  await ready(page);
  await page.getByRole("searchbox").fill("EVERY ann@");
  assert.deepEqual(await names(page), ["Nightly CI"], "two words, in description and owner");
  await page.getByRole("searchbox").fill("2001:db8 suspended");
  assert.deepEqual(await names(page), ["Load test"], "an address and a state");
  await page.getByRole("searchbox").fill("no such key");
  await page.getByText("No key matches.").waitFor();
  await page.getByRole("button", { name: "Clear" }).click();
  await page.getByLabel("Owner").selectOption("bob@example.org");
  assert.deepEqual(await names(page), ["Contractor, summer", "Old cron"]);
  await page.getByRole("button", { name: /unused/ }).click();
  assert.deepEqual(await names(page), ["Old cron"]);
  await page.waitForURL(/owner=bob%40example.org&hints=unused/);
  await page.reload();
  await ready(page);
  assert.deepEqual(await names(page), ["Old cron"], "after a reload");
  await page.getByRole("button", { name: /unused/ }).click();
  await page.getByLabel("Owner").selectOption("");
  await page.getByRole("columnheader", { name: "Last used" }).getByRole("button").click();
  const order = await names(page);
  assert.ok(order.indexOf("Backup") < order.indexOf("Old cron") && order.indexOf("Old cron") < order.indexOf("Nightly CI"), `never, long ago, now: ${order}`);
  assert.equal(await page.getByRole("columnheader", { name: "Last used" }).getAttribute("aria-sort"), "ascending");
  assert.deepEqual(problems, []);
  await page.context().close();
});

test("a key that goes into a Secret works when the page says so", async () => {
  const { page, problems } = await visit("ann");
  await ready(page);
  await page.getByRole("button", { name: "Create API key" }).click();
  await page.getByRole("button", { name: "Create key" }).click();
  await page.getByText("Give it a name.").waitFor();
  await page.getByRole("textbox", { name: "Name", exact: true }).fill("Release build");
  await page.getByLabel("Owner").last().fill("ann@example.org");
  await page.getByLabel("Allowed addresses").fill("10.0.0.1/8, 2001:db8::1");
  await page.getByText("Entry 1 has host bits set.").waitFor();
  await page.getByRole("button", { name: "Use 10.0.0.0/8" }).click();
  assert.equal(await page.getByLabel("Allowed addresses").inputValue(), "10.0.0.0/8, 2001:db8::1");
  await until("the manifest", async () => (await page.getByLabel("Manifest").textContent()).includes("- 10.0.0.0/8\n  - 2001:db8::1/128"));
  await page.getByText(/^Refused from .+ on$/).waitFor();
  await page.getByRole("button", { name: "Create key" }).click();
  await page.getByText(/^Every verifier accepts it/).waitFor();
  const key = fromSecret("release-build");
  assert.equal(await verify(key), 200, "at once");
  assert.equal(await verify(key, "192.0.2.1"), 403, "from elsewhere");
  assert.match(await page.getByLabel("Snippet").textContent(), /secretKeyRef:\n\s+name: release-build\n\s+key: api-key/);
  await page.getByRole("button", { name: "Done" }).click();
  await until("its row is focused", () => page.evaluate(() => document.activeElement.textContent === "Release build"));
  assert.deepEqual(problems, []);
  await page.context().close();
});

test("a key that is shown once is accepted, not lost by a slip, and nowhere once it is closed", async () => {
  const { page, context, problems } = await visit("ann");
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await ready(page);
  await page.getByRole("button", { name: "Create API key" }).click();
  await page.getByRole("textbox", { name: "Name", exact: true }).fill("Laptop");
  await page.getByText("Show me once, keep a digest").click();
  await page.getByRole("button", { name: "Create key" }).click();
  await page.getByRole("heading", { name: "Key for Laptop" }).waitFor();
  assert.match(await page.getByLabel("Key", { exact: true }).inputValue(), /^keyw1_\w{8}•+$/, "masked");
  assert.ok(!/keyw1_\w{9}/.test(await page.content()), "not in the DOM before Show");
  await page.keyboard.press("Escape");
  await page.getByText("Close? You cannot see this key again.").waitFor();
  await page.keyboard.press("Escape");
  assert.ok(await page.locator("dialog").isVisible(), "two slips do not lose it");
  await page.getByRole("button", { name: "Stay" }).click();
  await page.getByRole("button", { name: "Show" }).click();
  await page.keyboard.press("Escape");
  await page.getByText("Close? You cannot see this key again.").waitFor();
  await page.getByRole("button", { name: "Stay" }).click();
  const key = await page.getByLabel("Key", { exact: true }).inputValue();
  assert.match(key, /^keyw1_\w{49}$/);
  await page.getByRole("button", { name: "Copy key" }).click();
  await page.getByText("Copied", { exact: true }).waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), key);
  await page.getByText(/^Every verifier accepts it/).waitFor();
  assert.equal(await verify(key), 200);
  assert.equal(kubectl("get", "secrets", "--output", "name").includes("laptop"), false, "no Secret holds it");
  await page.getByText("The same, for Git").click();
  await page.getByRole("button", { name: "Copy", exact: true }).click();
  const digest = createHash("sha256").update(key).digest("hex");
  await until("the manifest is copied", () => page.evaluate((digest) => navigator.clipboard.readText().then((text) => text.includes(`keyHash: sha256:${digest}`)), digest));
  await page.getByRole("button", { name: "Done" }).click();
  await page.locator("dialog").waitFor({ state: "detached" });

  // Not the whole of it, so that the search does not find itself.
  const part = key.slice(20, 45);
  assert.ok(!(await page.content()).includes(part), "DOM");
  const stored = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, history.state, location.href, document.title, document.cookie]));
  assert.ok(!stored.includes(part), "storage and history");
  const client = await context.newCDPSession(page);
  await client.send("HeapProfiler.enable");
  await client.send("HeapProfiler.collectGarbage");
  await client.send("HeapProfiler.collectGarbage");
  const chunks = [];
  client.on("HeapProfiler.addHeapSnapshotChunk", ({ chunk }) => chunks.push(chunk));
  await client.send("HeapProfiler.takeHeapSnapshot", { reportProgress: false });
  const heap = chunks.join("");
  assert.ok(heap.includes("Laptop"), "the snapshot is one of this page");
  assert.ok(!heap.includes(part), "heap");
  assert.deepEqual(problems, []);
  await context.close();
});

test("where nothing can be copied, the key is selected, and a failed wait still shows it", async () => {
  const { page, context } = await visit("ann");
  await ready(page);
  await page.evaluate(() => (navigator.clipboard.writeText = () => Promise.reject(new Error("no"))));
  await page.getByRole("button", { name: "Create API key" }).click();
  await page.getByRole("textbox", { name: "Name", exact: true }).fill("No clipboard");
  await page.getByText("Show me once, keep a digest").click();
  // So that nobody accepts it before it is revoked.
  process.kill(stage.verifierProcess, "SIGSTOP");
  await page.getByRole("button", { name: "Create key" }).click();
  await page.getByRole("heading", { name: "Key for No clipboard" }).waitFor();
  kubectl("delete", "apikey", "no-clipboard", "--wait=false");
  process.kill(stage.verifierProcess, "SIGCONT");
  await page.getByRole("alert").getByText(/revoked/).waitFor();
  await page.getByRole("button", { name: "Copy key" }).click();
  await page.getByText("Could not copy. Selected: press Ctrl+C.").waitFor();
  assert.match(await page.evaluate(() => String(getSelection())), /^keyw1_\w{49}$/);
  await context.close();
});

test("what is changed is enforced, and a rotation makes a new key", async () => {
  const { page, problems } = await visit("ann");
  await ready(page);
  const key = fromSecret("deploy-runner");
  await listed(page, "Deployment runner").click();
  const details = page.locator("#details");
  await details.getByText("Callers are let in.").waitFor();
  await details.getByRole("button", { name: "Change addresses" }).click();
  await page.getByLabel("Allowed addresses").fill("192.0.2.0/24");
  await page.getByRole("button", { name: "Change", exact: true }).click();
  await until("the new addresses", async () => (await verify(key)) === 403);
  assert.equal(await verify(key, "192.0.2.9"), 200);
  await details.getByText("192.0.2.0/24").waitFor();
  await details.getByRole("button", { name: "Change addresses" }).click();
  kubectl("patch", "apikey", "deploy-runner", "--type", "merge", "--patch", JSON.stringify({ spec: { allowedIPs: ["192.0.2.8/29"] } }));
  await page.getByLabel("Allowed addresses").fill("10.9.0.0/16");
  await page.getByRole("button", { name: "Change", exact: true }).click();
  await page.getByText("Somebody has changed this key meanwhile").waitFor();
  await page.getByRole("button", { name: "Cancel" }).click();
  await details.getByText("192.0.2.8/29").waitFor();
  await details.getByRole("button", { name: "Suspend" }).click();
  await details.getByText("Refused on purpose.").waitFor();
  await details.getByRole("button", { name: "Rotate" }).click();
  await details.getByText("is suspended: its rotation waits until it is resumed").waitFor();
  await until("the suspension", async () => (await verify(key, "192.0.2.9")) === 401);
  await details.getByRole("button", { name: "Resume" }).click();
  await until("the resumption", async () => (await verify(key, "192.0.2.9")) === 200);
  await details.getByRole("button", { name: "Change description" }).click();
  await page.getByRole("textbox", { name: "Description" }).fill("Rolls out\ntwo lines");
  await page.getByRole("button", { name: "Change", exact: true }).click();
  await details.getByText("two lines").waitFor();
  const declared = kubectl("get", "apikey", "deploy-runner", "--output", "jsonpath={.spec}");
  await details.getByRole("button", { name: "Change expiry" }).click();
  await page.getByRole("button", { name: "Change", exact: true }).click();
  await page.locator("dialog").waitFor({ state: "detached" });
  assert.equal(kubectl("get", "apikey", "deploy-runner", "--output", "jsonpath={.spec}"), declared, "nothing was chosen, and nothing is changed");
  await details.getByRole("button", { name: "Change expiry" }).click();
  await page.getByText("1 day", { exact: true }).click();
  await page.getByRole("button", { name: "Change", exact: true }).click();
  await details.getByText(/^in 23 h/).waitFor();
  await details.getByRole("button", { name: "Rotate" }).dblclick();
  await details.getByText(", no. 2").waitFor();
  assert.notEqual(fromSecret("deploy-runner"), key);
  await details.getByText(/^Old key/).waitFor();
  assert.equal(kubectl("get", "apikey", "deploy-runner", "--output", "jsonpath={.status.serial}"), "2", "a double click rotates once");
  assert.equal(await verify(key, "192.0.2.9"), 200, "the old key has its overlap");
  const unexpected = problems.filter((problem) => !problem.includes("409 (Conflict)"));
  assert.deepEqual(unexpected, []);
  await page.context().close();
});

test("a key in use is revoked by its typed name, and refused when the page says so", async () => {
  const { page, problems } = await visit("ann");
  await ready(page);
  const key = fromSecret("nightly-ci");
  await until("it is let in", async () => (await verify(key)) === 200);
  await listed(page, "Nightly CI").click();
  await page.getByRole("button", { name: "Revoke..." }).click();
  const asked = page.getByRole("alertdialog");
  await asked.getByText(/Mounted by Deployment runner\./).waitFor();
  await asked.getByText(/you may not list statefulsets/).waitFor();
  const revoke = asked.getByRole("button", { name: "Revoke key" });
  assert.ok(await revoke.isDisabled());
  await asked.getByRole("textbox").fill("nightly");
  assert.ok(await revoke.isDisabled(), "a part of the name");
  await asked.getByRole("textbox").fill("nightly-ci");
  await revoke.click();
  await asked.getByText(/^Revoked in .+ s\. No verifier accepts it any more\.$/).waitFor();
  assert.equal(await verify(key), 401, "at once");
  assert.throws(() => kubectl("get", "apikey", "nightly-ci"), /NotFound/);
  await asked.getByRole("button", { name: "Done" }).click();
  await until("the row is gone", async () => (await listed(page, "Nightly CI").count()) === 0);
  await until("the next row is focused", () => page.evaluate(() => document.activeElement.closest("tbody") !== null));
  assert.deepEqual(problems, []);
  await page.context().close();
});

test("a verifier that does not answer is waited for by name, and no longer than said", async () => {
  const { page, problems } = await visit("ann");
  await ready(page);
  const key = fromSecret("unlucky-1");
  await listed(page, "Metrics reader").click();
  await page.getByRole("button", { name: "Revoke..." }).click();
  const asked = page.getByRole("alertdialog");
  await asked.getByText("Never used.").waitFor();
  process.kill(stage.verifierProcess, "SIGSTOP");
  try {
    await asked.getByRole("button", { name: "Revoke key" }).click();
    await asked.getByText(/^Waiting for keywright-verifier-\w+, until \d\d:\d\d:\d\d at most$/).waitFor();
    await shoot(page, "revoking-1280-light");
    await listed(page, "Metrics reader").locator("xpath=ancestor::tr").getByText("Revoking").waitFor();
    assert.ok(kubectl("get", "apikey", "unlucky-1", "--output", "name"), "it is still there");
  } finally {
    process.kill(stage.verifierProcess, "SIGCONT");
  }
  await asked.getByText(/^Revoked in /).waitFor();
  assert.equal(await verify(key), 401);
  await asked.getByRole("button", { name: "Done" }).click();
  assert.deepEqual(problems, []);
  await page.context().close();
});

test("times are said as people say them, rounded down", async () => {
  const { page } = await visit("ann");
  const said = await page.evaluate(async () => {
    const { ago, now, spoken } = await import("/time.js");
    const [minute, hour, day] = [60, 3600, 86_400];
    const passed = [0, 59, minute, 4 * minute + 59, hour - 1, hour, day - 1, day, 94 * day + 5, 365.5 * day, 366 * day, -30, -minute, -87 * day - 5];
    return [...passed.map((passed) => spoken(1_796_000_000 - passed, 1_796_000_000)), ago(now() + 90)];
  });
  assert.deepEqual(said, ["just now", "just now", "1 min ago", "4 min ago", "59 min ago", "1 h ago", "23 h ago", "1 day ago", "94 days ago", "365 days ago", "29 Nov 2025", "in under 1 min", "in 1 min", "in 87 days", "just now"]);
  await page.context().close();
});

test("all of it goes by keyboard alone", async () => {
  const { page, problems } = await visit("ann");
  await ready(page);
  const focused = () => page.evaluate(() => document.activeElement.textContent || document.activeElement.value || document.activeElement.ariaLabel);
  const tabTo = async (text) => {
    for (let count = 0; count < 40; count++) {
      if ((await focused()) === text) return;
      await page.keyboard.press("Tab");
    }
    assert.fail(`no Tab leads to ${text}`);
  };
  await tabTo("Create API key");
  await page.keyboard.press("Enter");
  await page.keyboard.type("By keyboard");
  await tabTo("Create key");
  await page.keyboard.press("Enter");
  await page.getByText(/^Every verifier accepts it/).waitFor();
  await tabTo("Done");
  await page.keyboard.press("Enter");
  await until("the new row has the focus", async () => (await focused()) === "By keyboard");
  await page.keyboard.press("Home");
  const first = await focused();
  await page.keyboard.press("ArrowDown");
  assert.notEqual(await focused(), first);
  await page.keyboard.press("End");
  await page.keyboard.press("/");
  assert.equal(await page.evaluate(() => document.activeElement.id), "search");
  await page.keyboard.type("by keyboard");
  await tabTo("By keyboard");
  await page.keyboard.press("Enter");
  await page.locator("#details").getByText("In force everywhere").waitFor();
  await page.keyboard.press("Escape");
  await until("back at the row", async () => (await focused()) === "By keyboard");
  await page.keyboard.press("Enter");
  await page.locator("#details").getByText("In force everywhere").waitFor();
  await tabTo("Revoke...");
  await page.keyboard.press("Enter");
  await page.getByRole("alertdialog").getByText("Never used.").waitFor();
  await tabTo("Revoke key");
  await page.keyboard.press("Enter");
  await page.getByRole("alertdialog").getByText(/^Revoked in /).waitFor();
  await page.keyboard.press("Enter");
  await page.locator("dialog").waitFor({ state: "detached" });
  assert.deepEqual(problems, []);
  await page.context().close();
});

test("keys of others wait to be asked for, and nothing moves", async () => {
  const { page } = await visit("ann");
  await ready(page);
  const before = await names(page);
  apply({ apiVersion: "keywright.dev/v1alpha1", kind: "ApiKey", metadata: { name: "aaa-first" }, spec: { displayName: "AAA first", owner: "eve@example.org", expiresIn: "1d" } });
  await page.getByText("1 new key.").waitFor();
  assert.deepEqual(await names(page), before);
  await page.getByRole("button", { name: "Show", exact: true }).click();
  assert.equal((await names(page))[0], "AAA first");
  kubectl("delete", "apikey", "aaa-first");
  await page.locator("tr.past").getByText("Revoked").waitFor();
  assert.equal((await names(page))[0], "AAA first", "it stays where it was, marked");
  await page.context().close();
});
