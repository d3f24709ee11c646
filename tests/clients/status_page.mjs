// The status page in headless Chromium, on a narrow phone in the dark and on a desktop: figures come, nothing
// sticks out, nothing is fetched from elsewhere.
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { chromium } from "playwright-core";

const [address, browser, ...args] = process.argv.slice(2);
const looks = [
  { viewport: { width: 320, height: 640 }, colorScheme: "dark" },
  { viewport: { width: 1280, height: 900 }, colorScheme: "light" },
];
for (const look of looks) {
  const context = await chromium.launchPersistentContext(mkdtempSync(`${tmpdir()}/status-`), {
    executablePath: browser,
    headless: true,
    args,
    ...look,
  });
  const page = await context.newPage();
  const faults = [];
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("request", (request) => {
    if (!request.url().startsWith(address) && !request.url().startsWith("data:")) faults.push(request.url());
  });
  await page.goto(address);
  // The second reading has rates.
  await page.waitForFunction(() => /Messages in\s*\d/.test(document.querySelector("#tiles").innerText), null, {
    timeout: 30000,
  });
  const seen = await page.evaluate(() => {
    const sticksOut = (node) => {
      const card = node.closest(".card").getBoundingClientRect();
      const range = document.createRange();
      range.selectNodeContents(node);
      const box = range.getBoundingClientRect();
      return box.left < card.left || box.right > card.right;
    };
    return {
      state: document.querySelector("#state").innerText,
      tiles: document.querySelector("#tiles").innerText.replaceAll("\n", " "),
      streams: document.querySelector("#streams").innerText.replaceAll(/\s+/g, " "),
      // Tables scroll by themselves.
      sticking: [...document.querySelectorAll(".card dt, .card dd, .card h2, .card p, .card svg text")]
        .filter(sticksOut)
        .map((node) => node.textContent),
      beyond: document.documentElement.scrollWidth - innerWidth,
      ground: getComputedStyle(document.body).backgroundColor,
    };
  });
  console.log(JSON.stringify({ ...seen, faults }));
  await context.close();
}
