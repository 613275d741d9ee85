// The Compare tab: rows of pictures with one thing varied, all made by the public API.
// Runs as the body of a function with `element` (this tab) and `props` (words, model).
const words = wordsOf(props.words);
function speak() { words.fill(element); }
document.addEventListener('unmask:language', speak);
speak();
