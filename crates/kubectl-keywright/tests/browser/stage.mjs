// What the tests share: the stage that the Rust test has set, a browser, and a person in front of it.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import net from "node:net";
import { tmpdir } from "node:os";
import { chromium } from "playwright-core";

export const stage = JSON.parse(process.env.KEYWRIGHT_STAGE);

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

let browser;

export async function openBrowser() {
  browser ??= await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--js-flags=--expose-gc"] });
  return browser;
}

export async function closeBrowser() {
  await browser?.close();
  browser = undefined;
}

/** The page of a person, in a window of its own. The token is spent by the first; the others have its session. */
export async function visit(person, { fragment = "", before = async () => {}, ...options } = {}) {
  await openBrowser();
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, locale: "en-GB", timezoneId: "Europe/Berlin", ...options });
  const page = await context.newPage();
  const problems = [];
  page.on("pageerror", (error) => problems.push(error.message));
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  const [origin, token] = stage.pages[person].split("#");
  await before(page);
  const session = sessions();
  if (session[person]) {
    await context.addCookies(session[person].cookies);
    await page.addInitScript((proof) => sessionStorage.setItem("proof", proof), session[person].proof);
    await page.goto(`${origin}#${fragment}`);
  } else {
    await page.goto(`${origin}#${token}`);
    await page.waitForFunction(() => document.getElementById("who").textContent !== "");
    keepSession(person, { cookies: await context.cookies(), proof: await page.evaluate(() => sessionStorage.getItem("proof")) });
    assert.ok(!page.url().includes(token), "the token is gone from the address");
    if (fragment) {
      await page.goto(`${origin}#${fragment}`);
      await page.reload();
    }
  }
  return { page, context, problems };
}

// node --test runs each file in a process of its own, and a token is good once.
const file = `${tmpdir()}/keywright-sessions-${stage.namespace}.json`;
function sessions() {
  try {
    return JSON.parse(readFileSync(file, "utf8"));
  } catch {
    return {};
  }
}
function keepSession(person, kept) {
  writeFileSync(file, JSON.stringify({ ...sessions(), [person]: kept }), { mode: 0o600 });
}

export const kubectl = (...given) =>
  execFileSync(stage.kubectl, ["--kubeconfig", stage.kubeconfig, "--namespace", stage.namespace, ...given], { encoding: "utf8", stdio: ["pipe", "pipe", "pipe"] });

export const apply = (object) =>
  execFileSync(stage.kubectl, ["--kubeconfig", stage.kubeconfig, "--namespace", stage.namespace, "create", "--filename", "-"], { input: JSON.stringify(object), encoding: "utf8" });

/** What the verifier answers to this key from this address. */
export function verify(key, from = "10.0.0.7") {
  const [host, port] = stage.verifier.split(":");
  return new Promise((done, failed) => {
    http.get({ host, port, path: "/verify", headers: { Authorization: `Bearer ${key}`, "X-Forwarded-For": from } }, (answer) => {
      answer.resume();
      done(answer.statusCode);
    }).on("error", failed);
  });
}

/** Has this be wrong between the page of `remote` and the API server: `unreachable`, `long lists are slow`, `nothing`. */
export function outage(what) {
  const [host, port] = stage.outages.split(":");
  return new Promise((done, failed) => {
    const connection = net.connect(port, host, () => connection.end(`${what}\n`));
    connection.on("data", done).on("error", failed);
  });
}

/** Asks until it is so. */
export async function until(what, isSo, milliseconds = 20_000) {
  const end = Date.now() + milliseconds;
  for (;;) {
    const seen = await isSo();
    if (seen) return seen;
    assert.ok(Date.now() < end, `not within ${milliseconds} ms: ${what}`);
    await new Promise((later) => setTimeout(later, 50));
  }
}

export async function shoot(page, name) {
  mkdirSync(stage.shots, { recursive: true });
  await page.screenshot({ path: `${stage.shots}/${name}.png` });
}

/** Nothing sticks out sideways, and axe finds nothing. */
export async function inspect(page, what) {
  const wide = await page.evaluate(() => {
    const box = document.querySelector("dialog[open]") ?? document.documentElement;
    return { has: box.scrollWidth, fits: box.clientWidth };
  });
  assert.ok(wide.has <= wide.fits, `${what}: ${wide.has} px in ${wide.fits} px`);
  await page.evaluate(axe);
  const found = await page.evaluate(() =>
    axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }).then(({ violations }) =>
      violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.slice(0, 3).map(({ html, failureSummary }) => `${html.slice(0, 200)} ${failureSummary}`).join(" | ")}`)));
  assert.deepEqual(found, [], what);
}

export const listed = (page, name) => page.locator("tbody th button").filter({ hasText: name });
export const ready = (page) => page.locator("tbody tr").first().waitFor();
