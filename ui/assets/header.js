// The line above the tabs: name, model, colours. Runs as the body of a function with `element` and `props`.
const words = wordsOf(props.words);
words.fill(element);
element.querySelector('.um-model').textContent = words('head.model', { name: props.model });

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
