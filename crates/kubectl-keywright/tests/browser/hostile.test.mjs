// Texts of tenants who mean ill, in every field that the API server lets them write.

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { apply, closeBrowser, kubectl, listed, ready, shoot, stage, until, visit } from "./stage.mjs";

after(closeBrowser);

const PAYLOADS = [
  `<img src=x onerror="window.hit=1">`,
  `"><script>window.hit=1</script>`,
  `'-alert(1)-'{{7*7}}\${7*7}`,
  `javascript:window.hit=1`,
  `<svg/onload=window.hit=1><a href="javascript:window.hit=1">x</a>`,
  `&lt;b&gt; </textarea></title></style>`,
  `right\u202eot left \u2066x`,
];

test("markup is text, wherever it stands", async () => {
  for (const [index, payload] of PAYLOADS.entries()) {
    apply({
      apiVersion: "keywright.dev/v1alpha1", kind: "ApiKey",
      metadata: { name: `hostile-${index}`, annotations: { "example.org/note": payload, "keywright.dev/rotate": payload }, labels: {} },
      spec: { displayName: payload, description: `${payload}\n${payload}`, owner: "eve@example.org", expiresIn: "30d" },
    });
    apply({
      apiVersion: "v1", kind: "Event", metadata: { name: `hostile-${index}`, namespace: stage.namespace }, reason: payload.slice(0, 60), message: payload, type: "Warning",
      involvedObject: { kind: "ApiKey", name: `hostile-${index}`, namespace: stage.namespace, uid: kubectl("get", "apikey", `hostile-${index}`, "--output", "jsonpath={.metadata.uid}") },
    });
  }
  const { page, context, problems } = await visit("ann");
  const asked = [];
  page.on("dialog", (dialog) => { asked.push(dialog.message()); dialog.dismiss(); });
  page.on("request", (request) => asked.push(...(request.url().startsWith("http://127.0.0.1:") ? [] : [request.url()])));
  await ready(page);
  await page.getByRole("searchbox").fill("hostile-");
  // What turns the reading direction round is written out in names: they stand in questions.
  const named = (payload) => payload.replace(/[\u202a-\u202e\u2066-\u2069]/g, (one) => `\\u{${one.codePointAt(0).toString(16)}}`);
  for (const [index, payload] of PAYLOADS.entries()) {
    const name = named(payload);
    const row = page.locator("tbody tr").filter({ hasText: `hostile-${index}` });
    assert.equal(await row.locator("th button").textContent(), name);
    await row.locator("th button").click();
    const details = page.locator("#details");
    await until("the details", async () => (await details.locator("h2").textContent()) === name);
    await details.locator("dl").waitFor();
    assert.ok((await details.locator("dl").textContent()).includes(`${payload}\n${payload}`), "the description");
    await page.locator("summary", { hasText: "Events" }).click();
    await details.getByText(payload, { exact: true }).last().waitFor();
    await page.getByRole("button", { name: "Revoke..." }).click();
    assert.ok((await page.getByRole("alertdialog").locator("h2").textContent()).includes(name));
    await page.getByRole("button", { name: "Keep" }).click();
    await page.keyboard.press("Escape");
  }
  await page.getByRole("button", { name: "Create API key" }).click();
  for (const payload of PAYLOADS) {
    for (const field of ["Name", "Description", "Owner", "Allowed addresses"]) await page.locator("dialog").getByRole("textbox", { name: field, exact: true }).fill(payload);
    await page.getByRole("button", { name: "Create key" }).click();
    await page.locator("dialog .problem:visible").first().waitFor();
  }
  await shoot(page, "hostile-1280-light");
  assert.equal(await page.evaluate(() => window.hit), undefined);
  assert.deepEqual(await page.evaluate(() => [...document.querySelectorAll("img, svg, script:not([src]), iframe, a, b, style")].length), 0, "no element of theirs");
  assert.deepEqual(asked, []);
  assert.deepEqual(problems, [], "and nothing that the policy had to stop");
  kubectl("delete", "apikeys", ...PAYLOADS.map((_, index) => `hostile-${index}`));
  await context.close();
});

test("a key that somebody pastes into a field is not repeated", async () => {
  const { page, context } = await visit("ann");
  await ready(page);
  await page.getByRole("button", { name: "Create API key" }).click();
  const key = `keyw1_${"a".repeat(49)}`;
  await page.getByRole("textbox", { name: "Name", exact: true }).fill("x");
  await page.locator("dialog").getByRole("textbox", { name: "Owner" }).fill(key);
  await page.getByText(/looks like a key/).waitFor();
  assert.ok(!(await page.locator("dialog .problem:visible").allTextContents()).join().includes("aaaaaaaaa"));
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByRole("searchbox").fill(key);
  await page.getByText("No key matches.").waitFor();
  await page.getByRole("searchbox").fill("nightly");
  await page.waitForURL(/search=nightly/);
  await page.getByRole("searchbox").fill(`${key} x`);
  await page.waitForURL((url) => !url.hash.includes("search"));
  await page.getByLabel("Namespace").fill(key);
  await page.getByLabel("Namespace").press("Enter");
  await listed(page, "Nightly CI").waitFor({ state: "detached" });
  assert.ok(!page.url().includes("keyw1"), page.url());
  await context.close();
});
