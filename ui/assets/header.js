// The line above the tabs: name, model, classroom, language, colours; and the labels of the tabs. Runs as the body of a function with `element` and `props`.
const words = wordsOf(props.words);
if (!store.state.models.length) store.set({ model: props.model, models: [props.model] });

// --- the classroom -------------------------------------------------------------------------------------------
const presenting = element.querySelector('.um-presenting'), isPresenting = () => document.body.classList.contains('um-present');
function present(on) {
  document.body.classList.toggle('um-present', on);
  presenting.textContent = words(on ? 'head.leave' : 'head.present');
}
presenting.addEventListener('click', () => {
  present(!isPresenting());
  putAddress({ present: isPresenting() ? '1' : '' });
  document.dispatchEvent(new Event('unmask:present'));
  scrollTo(0, 0);
});
present(new URLSearchParams(location.search).has('present'));

// --- language ----------------------------------------------------------------------------------------------
// Gradio's own labels stand in one language and its start writes the browser's into <html lang>: both follow ours.
let tabs = null; // Gradio makes them after this line
const labels = new Map(props.tabs.map((key) => [props.words.en.tabs[key], key]));
const keys = new WeakMap(); // text node of a label -> its key, for the label changes with the language
const buttons = {}; // key -> the tab's button
function labelTabs() {
  if (!tabs) return;
  const nodes = document.createTreeWalker(tabs, NodeFilter.SHOW_TEXT);
  while (nodes.nextNode()) {
    const node = nodes.currentNode, key = keys.get(node) || labels.get(node.data.trim());
    if (!key) continue;
    keys.set(node, key);
    const button = node.parentElement.closest('button[role=tab]');
    if (button && !button.closest('[aria-hidden=true]')) buttons[key] = button;
    if (node.data !== words('tabs.' + key)) node.data = words('tabs.' + key);
  }
  nameTabs();
}
/** Gradio's list of tabs has no name, its panels are not named by their tabs, and each tab is a stop of the Tab key. */
function nameTabs() {
  const open = props.tabs.find(isOpen);
  for (const [key, button] of Object.entries(buttons)) {
    button.tabIndex = !open || key === open ? 0 : -1;
    button.id ||= 'um-tab-' + key;
    button.closest('[role=tablist]')?.setAttribute('aria-label', words('head.tabs'));
  }
  // A panel is made when its tab is first opened.
  if (open) document.querySelector('[role=tabpanel]:not([aria-labelledby])')?.setAttribute('aria-labelledby', buttons[open].id);
}
/** The arrows move between tabs; what they come to is opened by Enter, for a tab may begin to work when it is opened. */
function moveAmongTabs(event) {
  const row = props.tabs.map((key) => buttons[key]).filter(Boolean), at = row.indexOf(event.target);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: row.length - 1 }[event.key];
  if (at < 0 || to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  row[(to + row.length) % row.length].focus();
}
const isOpen = (key) => Boolean(buttons[key]) && buttons[key].getAttribute('aria-selected') === 'true';
function openTab(key) {
  if (!buttons[key]) return;
  if (!isOpen(key)) buttons[key].click();
  scrollTo(0, 0);
}
const tabInAddress = () => new URLSearchParams(location.search).get('tab') || props.tabs[0];
/** The address follows the tab that is open, and the browser's Back goes through them; the first one needs no word there. */
function noteTab() {
  const open = props.tabs.find(isOpen);
  nameTabs();
  if (open && open !== tabInAddress()) putAddress({ tab: open === props.tabs[0] ? '' : open }, 'pushState');
}
function speak() {
  const code = LANGUAGES[language()];
  if (document.documentElement.lang !== code) document.documentElement.lang = code;
}
function paintWords() {
  speak(); words.fill(element); labelTabs(); present(isPresenting());
  element.querySelector('.um-language').lang = language() === 'en' ? 'zh-CN' : 'en';
  paintModels(store.state);
  paintTheme(document.body.classList.contains('dark'));
}
element.querySelector('.um-language').addEventListener('click', () => {
  window.unmaskLanguage = language() === 'en' ? 'zh' : 'en';
  remember('unmask-language', language());
  putAddress({ lang: language() });
  document.dispatchEvent(new Event('unmask:language'));
});
document.addEventListener('unmask:language', paintWords);
new MutationObserver(speak).observe(document.documentElement, { attributes: true, attributeFilter: ['lang'] });
function findTabs() {
  tabs = document.querySelector('.tab-wrapper');
  if (!tabs) return;
  finder.disconnect();
  new MutationObserver(labelTabs).observe(tabs, { childList: true, subtree: true });
  labelTabs();
  const asked = new URLSearchParams(location.search).get('tab') || location.hash.split('-')[1]; // #um-compare-models is on Compare
  if (props.tabs.includes(asked)) {
    if (asked !== tabInAddress()) putAddress({ tab: asked });
    openTab(asked);
  }
  new MutationObserver(nameTabs).observe(tabs.parentElement, { childList: true });
  tabs.addEventListener('keydown', moveAmongTabs);
  addEventListener('popstate', () => {
    openTab(tabInAddress());
    // An older entry's address tells of an older view; the page shows the one of now.
    if (store.state.result) history.replaceState(history.state, '', store.link());
    const lang = remembered('unmask-language') ? { lang: language() } : {};
    putAddress({ ...lang, present: isPresenting() ? '1' : '' });
  });
  document.addEventListener('unmask:open', (event) => openTab(event.detail));
  new MutationObserver(noteTab).observe(tabs, { subtree: true, attributeFilter: ['aria-selected'] });
}
const finder = new MutationObserver(findTabs);
finder.observe(document.body, { childList: true, subtree: true });

element.querySelector('.um-skip').addEventListener('click', (event) => { // the grid, or the heading of the tab that is open
  event.preventDefault();
  const target = [...document.querySelectorAll('#um-grid, .um-tab h1')].find((node) => node.checkVisibility());
  if (!target) return;
  if (target.tagName === 'H1') target.tabIndex = -1;
  target.focus();
});

// --- models ------------------------------------------------------------------------------------------------
const choice = element.querySelector('.um-models'), list = choice.querySelector('select');
let awaited = ''; // the name that was chosen, until its model comes or cannot be had
/** One model is a fact, several are a choice. */
function paintModels({ model, models }) {
  choice.hidden = models.length < 2;
  element.querySelector('.um-model').hidden = models.length > 1;
  const names = models.map(({ name }) => name);
  if ([...list.options].map(({ value }) => value).join('\n') !== names.join('\n')) list.replaceChildren(...names.map((name) => new Option(name, name)));
  list.value = awaited || model.name;
  element.querySelector('.um-model').textContent = words('head.model', { name: model.name });
}
list.addEventListener('change', () => { awaited = list.value; store.choose(awaited).catch(() => {}); });
for (const type of ['unmask:model', 'unmask:unchosen']) document.addEventListener(type, () => { awaited = ''; paintModels(store.state); });
store.watch(paintModels, element);
// Explore tells it where it tells all; the other tabs have no such place.
const failed = element.querySelector('.um-model-failed');
let failedFor = 0;
document.addEventListener('unmask:choosing', () => { failed.textContent = ''; });
document.addEventListener('unmask:unchosen', () => {
  if (isOpen(props.tabs[0])) return;
  failed.textContent = words('head.unchosen');
  clearTimeout(failedFor);
  failedFor = setTimeout(() => { failed.textContent = ''; }, 10_000);
});
document.addEventListener('unmask:first', () => store.models()); // not needed for the first result, so not before it

// --- colours -----------------------------------------------------------------------------------------------

const theme = element.querySelector('.um-theme');
function paintTheme(dark) {
  document.body.classList.toggle('dark', dark);
  theme.setAttribute('aria-pressed', String(dark));
  theme.setAttribute('aria-label', words('head.dark'));
  theme.title = words(dark ? 'head.light' : 'head.dark');
  theme.firstElementChild.textContent = dark ? '☀' : '☾';
}
const chosen = remembered('unmask-theme');
const forced = new URLSearchParams(location.search).get('__theme');
paintTheme(forced ? forced === 'dark' : chosen ? chosen === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches);
theme.addEventListener('click', () => {
  const dark = !document.body.classList.contains('dark');
  remember('unmask-theme', dark ? 'dark' : 'light');
  paintTheme(dark);
});
let dark = false; // before it was printed: paper is white
addEventListener('beforeprint', () => { dark = document.body.classList.contains('dark'); paintTheme(false); });
addEventListener('afterprint', () => paintTheme(dark));
paintWords();
findTabs();
