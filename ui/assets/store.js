// What the tabs share, in the browser: window.unmask.store. Explore fills it, the other tabs read it.
//
//   state.picture  null or {blob, image, title, sample, source}
//                                                         what is sent, decoded, its name, '' or the sample's name, the
//                                                         file as it was given (with fields.crop and fields.fit)
//   state.fields   {strategy, ratio, seed, ...}           form fields of the result on screen, as strings, without
//                                                         image and panels; post them and you get it again
//   state.mask     null or {rows, columns, hidden}        hidden: list of patches, row by row from 0
//   state.result   null or {answer, images, hidden, title, model, edition}
//                                                         answer: JSON of /v1/reconstruct; images: panel -> Image; model:
//                                                         that drew it, as it is described
//   state.model    {name, grid, image_size, ...}          the model chosen, whose result may still be awaited
//   state.models   [model, ...]                           all that are served
//   state.samples  [{name, title, ...}, ...]            the pictures that the page offers
//   state.show     {panel, paste, samples}                what stands on the right in Explore; samples: masks of the uncertainty
//
//   store.set({key: value, ...})      replaces keys, tells the watchers
//   store.watch(run, element)         run(state) now and after changes; while element is not on screen it waits
//   store.request()                   {fields, panels}: what to ask for a picture of this view, for a file and for code alike
//   store.modelShown()                the model of the result
//   store.link()                      the address of this view; a picture of one's own is not in it
//   await store.models()              state.models, asked of the server once; loaded ones are described in full
//   await store.describe(name)        one model in full, as /v1/models/NAME gives it
//   await store.choose(name)          another model: Explore reads its picture again with it
// Values are replaced, never changed in place.

function createStore() {
  const state = { picture: null, fields: {}, mask: null, result: null, model: {}, models: [], samples: [], show: { panel: 'result', paste: true, samples: 8 } };
  const watchers = new Set();
  let frame = 0, models = null, choices = 0;
  const get = async (path) => (await patiently(() => fetch(rootUrl(path)), { tries: 0 })).json(); // a model may have to be loaded

  function tell() {
    frame = 0;
    for (const watcher of watchers) {
      if (!watcher.element.isConnected) { watchers.delete(watcher); watcher.eye.disconnect(); continue; }
      if (watcher.behind && watcher.element.checkVisibility()) { watcher.behind = false; watcher.run(state); }
    }
  }
  const later = () => { frame ||= requestAnimationFrame(tell); };
  return {
    state,
    set(change) {
      Object.assign(state, change);
      for (const watcher of watchers) watcher.behind = true;
      later();
    },
    watch(run, element) {
      const watcher = { run, element, behind: true, eye: new ResizeObserver(later) }; // a tab that opens changes its size
      watchers.add(watcher);
      watcher.eye.observe(element);
      later();
    },
    /** The model whose result Explore shows: one that was just chosen comes with its first answer. */
    modelShown: () => (state.result ? state.result.model : state.model),
    request: () => requestOf(state),
    link: () => linkTo(state),
    /** All that are served; where nobody answers, the one that the page came with. */
    models: () => (models ||= get('v1/models').then((answer) => { store.set({ models: answer.models }); return answer.models; }).catch(() => { models = null; return state.models; })),
    async describe(name) {
      const known = state.models.find((one) => one.name === name && one.views); // those not loaded do not tell all
      return known || get('v1/models/' + encodeURIComponent(name));
    },
    /** The one chosen last counts, however long an earlier one takes. */
    async choose(name) {
      const mine = (choices += 1);
      document.dispatchEvent(new Event('unmask:choosing')); // one that is not loaded yet takes its time
      try {
        const model = await store.describe(name);
        if (mine !== choices) return;
        store.set({ model });
        document.dispatchEvent(new CustomEvent('unmask:model', { detail: model }));
      } catch (error) {
        if (mine !== choices) return;
        document.dispatchEvent(new Event('unmask:unchosen'));
        throw error;
      }
    },
  };
}

/** Of several masks of one kind; a drawn one has no others like it, so that its view shows the result. */
function requestOf({ fields, show: { panel, paste, samples } }) {
  const spread = panel === 'uncertainty' && fields.strategy !== 'indices', result = paste ? 'pasted' : 'reconstruction';
  return {
    fields: spread ? { ...fields, cover: 'ensemble', samples: String(samples) } : fields,
    panels: ['masked', spread || panel === 'error' ? panel : result, 'original'],
  };
}

// --- the address -------------------------------------------------------------------------------------------------
// pic, strategy, ratio, seed, view, fit, cover, samples, positions, model: as in the API; a drawn mask is m (its bits,
// base64url) and n (ROWSxCOLUMNS); show and paste are the page's own; lang, tab and present belong to the page as a whole.

const PAGE_KEYS = ['lang', 'tab', 'present', '__theme'];

/** Bits, first patch highest, as base64url. */
function packMask(hidden, total) {
  const bytes = new Uint8Array(Math.ceil(total / 8));
  for (const i of hidden) bytes[i >> 3] |= 128 >> (i & 7);
  return btoa(String.fromCharCode(...bytes)).replace(/\+/g, '-').replace(/\//g, '_').replace(/=+$/, '');
}
/** The list of hidden patches, or null when the text is no mask of that size. */
function unpackMask(text, total) {
  if (!/^[\w-]{1,400}$/.test(text)) return null;
  let bytes;
  try { bytes = Uint8Array.from(atob(text.replace(/-/g, '+').replace(/_/g, '/')), (letter) => letter.charCodeAt(0)); } catch { return null; }
  if (bytes.length !== Math.ceil(total / 8)) return null;
  const hidden = [];
  for (let i = 0; i < bytes.length * 8; i++) if (bytes[i >> 3] & (128 >> (i & 7))) hidden.push(i);
  return hidden.every((i) => i < total) ? hidden : null;
}
function linkTo({ picture, fields, mask, show }) {
  const address = new URL(location.href), given = new URLSearchParams();
  for (const key of PAGE_KEYS) if (address.searchParams.has(key)) given.set(key, address.searchParams.get(key));
  if (picture && picture.sample) given.set('pic', picture.sample);
  for (const [key, value] of Object.entries(fields)) if (key !== 'indices' && key !== 'crop' && !(key === 'strategy' && value === 'indices')) given.set(key, value);
  if (fields.strategy === 'indices' && mask) {
    given.set('m', packMask(mask.hidden, mask.rows * mask.columns));
    given.set('n', `${mask.rows}x${mask.columns}`);
  }
  if (show.panel !== 'result') given.set('show', show.panel);
  if (!show.paste) given.set('paste', '0');
  address.search = given;
  address.hash = '';
  return address.href;
}
/** Writes parameters into the address line; '' takes one out. `write`: a method of the history. */
function putAddress(change, write = 'replaceState') {
  const address = new URL(location.href);
  for (const [key, value] of Object.entries(change)) if (value) address.searchParams.set(key, value); else address.searchParams.delete(key);
  history[write](history.state, '', address);
}

window.unmask ||= {};
const store = (window.unmask.store ||= createStore());
