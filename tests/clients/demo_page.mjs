// The demo's page in headless Chromium: posts arrive over WebSocket and over Server-Sent Events.
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { chromium } from "playwright-core";

const [address, browser, ...args] = process.argv.slice(2);
const context = await chromium.launchPersistentContext(mkdtempSync(`${tmpdir()}/demo-`), {
  executablePath: browser,
  headless: true,
  args,
});
const page = await context.newPage();
const faults = [];
page.on("pageerror", (error) => faults.push(String(error)));
await page.goto(address);
const counts = await page.waitForFunction(
  () => {
    const posts = (lane) => document.querySelectorAll(`${lane} article, ${lane} li`).length;
    const [ws, sse] = [posts("#ws"), posts("#sse")];
    return ws >= 3 && sse >= 3 ? { ws, sse } : null;
  },
  null,
  { timeout: 30000 },
);
console.log(JSON.stringify({ ...(await counts.jsonValue()), title: await page.title(), faults }));
await context.close();
