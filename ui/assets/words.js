// Words, elements that hold them, and small browser memory, shared by every widget of the page.
// Text from outside (file names, model names, messages) goes through textContent only, never through markup.

const LANGUAGES = { en: 'en', zh: 'zh-CN' };

/** The page's language: ?lang=, else what was chosen before, else the browser's first that the page speaks. */
function language() {
  const known = (code) => Object.keys(LANGUAGES).find((name) => String(code || '').toLowerCase().split('-')[0] === name);
  window.unmaskLanguage ||= known(new URLSearchParams(location.search).get('lang')) || known(remembered('unmask-language'))
    || navigator.languages.map(known).find(Boolean) || 'en';
  return window.unmaskLanguage;
}
/** A number as the page's language writes it. */
const number = (value, digits = 1) => new Intl.NumberFormat(LANGUAGES[language()], { maximumFractionDigits: digits }).format(value);
/** A share; with as many digits always, for most stand beside others. */
const percent = (value, digits = 1) => new Intl.NumberFormat(LANGUAGES[language()], { style: 'percent', minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value / 100);
const shareText = (ratio) => percent(Number(ratio) * 100, 0);
/** On which masks a model was trained, by its recipe: {kinds: [[name, share of the masks], ...], hidden: '65–85%' of the patches}. */
function trainedOn({ recipe }) {
  const { masking = {}, mask_ratio: ratio } = recipe || {}, bounds = [...new Set([ratio].flat())];
  const hidden = bounds.map((bound, i) => (i === bounds.length - 1 ? shareText(bound) : number(100 * bound, 0))).join('–');
  return { kinds: Object.entries(masking).filter(([, part]) => part > 0), hidden };
}
/** Sentences one after the other, as the page's language sets them; what is none is left out. */
const sentences = (texts) => texts.filter(Boolean).join(language() === 'zh' ? '' : ' ');
/** An element with its class and its text. */
const make = (tag, className = '', text = '') => Object.assign(document.createElement(tag), { className, textContent: text });

/** Turns the tables of ui/strings into words('section.key', {name: value}), in whatever language is on. */
function wordsOf(languages) {
  const raw = (key) => { const [section, name] = key.split('.'); return (languages[language()][section] || {})[name] || key; };
  const words = (key, values = {}) => raw(key).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
  /** Fills every element that names its text by data-t, data-label (aria-label) or data-title. */
  words.fill = (root) => {
    for (const node of root.querySelectorAll('[data-t]')) node.textContent = words(node.dataset.t);
    for (const node of root.querySelectorAll('[data-label]')) node.setAttribute('aria-label', words(node.dataset.label));
    for (const node of root.querySelectorAll('[data-title]')) node.title = words(node.dataset.title);
  };
  /** The same with every value in bold; built from text nodes. */
  words.rich = (node, key, values) => {
    node.replaceChildren(...raw(key).split(/(\{\w+\})/).map((part) => {
      const name = part.slice(1, -1);
      if (!part.startsWith('{') || !(name in values)) return document.createTextNode(part);
      const bold = document.createElement('b');
      bold.textContent = values[name];
      return bold;
    }));
  };
  /** The title of a picture: a sample's is translated, an own picture's is its file name. */
  words.title = ({ sample, title }) => { const key = 'sample.' + sample, text = words(key); return text === key ? title : text; };
  return words;
}

/** Whether a text is on the clipboard now; on a classroom's plain address, which is not a secure one, by the old way. */
async function copied(text, button) {
  if (navigator.clipboard && await navigator.clipboard.writeText(text).then(() => true, () => false)) return true;
  const field = make('textarea', 'um-unseen');
  field.value = text;
  button.after(field); field.select();
  const done = document.execCommand('copy');
  field.remove(); button.focus();
  return done;
}

/** localStorage, which a private window may refuse. */
function remembered(key) { try { return localStorage.getItem(key); } catch { return null; } }
function remember(key, value) { try { localStorage.setItem(key, value); } catch { /* not kept, nothing else */ } }

/** The page's own address without the file part: right behind a path prefix as well. */
function rootUrl(path) { return location.origin + location.pathname.replace(/[^/]*$/, '') + path; }
