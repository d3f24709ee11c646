// The demo's page in a headless Chromium: posts arrive on both sides, in the same order, without errors; the
// controls work; it reads on a phone. Prints one line per finding; a screenshot of each size is kept.
import { chromium } from 'playwright-core';
import { mkdirSync } from 'node:fs';

const { DEMO, CHROMIUM, SCREENSHOTS } = process.env;
mkdirSync(SCREENSHOTS, { recursive: true });
const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox'] });
const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
page.setDefaultTimeout(30_000);
const problems = [];
page.on('pageerror', (error) => problems.push(`page error: ${error.message}`));
page.on('console', (message) => message.type() === 'error' && problems.push(`console: ${message.text()}`));
page.on('request', (request) => {
  const url = request.url();
  if (!url.startsWith(DEMO) && !url.startsWith('data:') && !url.startsWith(DEMO.replace('http', 'ws'))) {
    problems.push(`a request elsewhere: ${url}`);
  }
});

const until = (why, check, argument) => page.waitForFunction(check, argument).catch(() => {
  throw new Error(`in vain until ${why}`);
});
const bothSides = (count) =>
  until(`both sides show ${count} posts`, (n) =>
    ['ws', 'sse'].every((side) => document.querySelectorAll(`#${side} .item`).length >= n), count);

await page.goto(DEMO);
await bothSides(3);
await until('both are open', () =>
  ['ws', 'sse'].every((side) => document.querySelector(`#${side} .state`).textContent.startsWith('open')));
await until('both are found the same', () => document.querySelector('#verdict').textContent.includes('same on both'));
console.log('posts arrive on both sides');

// What somebody publishes by hand appears, as text and never as markup.
console.log('publish now');
await until('the post published by hand appears', () =>
  ['ws', 'sse'].every((side) => document.querySelector(`#${side}`).textContent.includes('Hello from redis-cli')));
if (await page.evaluate(() => 'hurt' in window)) problems.push('a post ran a script');
console.log('a post published by hand appears');

for (const stream of ['hashtag', 'user', 'public:local']) {
  await page.evaluate((value) => document.querySelector(`input[value="${value}"]`).click(), stream);
  await bothSides(1);
  console.log(`the stream ${stream} has posts`);
}
await page.screenshot({ path: `${SCREENSHOTS}/demo-wide.png` });
await page.setViewportSize({ width: 390, height: 844 });
const wide = await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth);
if (wide) problems.push('the page is wider than a phone');
await page.emulateMedia({ colorScheme: 'dark' });
await page.screenshot({ path: `${SCREENSHOTS}/demo-phone-dark.png`, fullPage: true });
await browser.close();
if (problems.length) {
  console.log(`problems: ${problems.join('; ')}`);
  process.exit(1);
}
console.log('done');
