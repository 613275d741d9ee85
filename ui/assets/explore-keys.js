// --- keys that work anywhere ---------------------------------------------------------------------------------------
let letters = remembered('unmask-letters') !== 'off';
$('.um-letters').checked = letters;
on('.um-letters', 'change', (event) => { letters = event.target.checked; remember('unmask-letters', letters ? 'on' : 'off'); });
on('.um-keys-open', 'click', () => $('.um-keys').showModal());
on('.um-keys-close', 'click', () => $('.um-keys').close());
const writes = (node) => node instanceof HTMLElement && (node.isContentEditable || node.matches('textarea, select, input:not([type=range], [type=radio], [type=checkbox], [type=file])'));
const LETTERS = { s: shuffle, i: invert, a: () => fill(0), '[': () => setRatio(currentRatio() - 5), ']': () => setRatio(currentRatio() + 5), '?': () => $('.um-keys').showModal() };
on(document, 'keydown', (event) => {
  if (!visible() || writes(event.target) || $('.um-keys').open) return;
  const key = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && !event.altKey && (key === 'z' || key === 'y')) {
    event.preventDefault();
    if (grid.busy) return; // the stroke under way ends what it began with
    if (key === 'y' || event.shiftKey) grid.redo(); else grid.undo();
  } else if (letters && !event.ctrlKey && !event.metaKey && !event.altKey && !grid.busy) {
    if (key === 'o' && !event.repeat) hold(true);
    else if (LETTERS[key]) { event.preventDefault(); LETTERS[key](); }
  }
});
on(document, 'keyup', (event) => { if (state.holding && event.key.toLowerCase() === 'o') hold(false); });
on(window, 'blur', () => { if (state.holding) hold(false); }); // the key is let go of in another window
