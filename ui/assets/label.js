// What a picture that is put together here says of itself: that a model painted in it. The words are the service's
// (model/provenance.py), given as props.label; settings are not among them, for no one request makes such a picture.

/** Little-endian bytes of a number. */
const bytesOf = (value, count) => Array.from({ length: count }, (_, i) => (value >>> (8 * i)) & 255);
const letters = (text) => Array.from(text, (letter) => letter.charCodeAt(0));
function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) { whole.set(part, offset); offset += part.length; }
  return whole;
}
const xmp = () => new TextEncoder().encode(props.label);

/** The check sum of a PNG chunk (ISO 3309). */
function crc32(bytes) {
  let sum = -1;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
  }
  return ~sum;
}
/** A PNG with the label behind its first chunk, which is the picture's size. */
async function labelledPng(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer()), first = 8 + 25;
  const named = joined([letters('iTXtXML:com.adobe.xmp'), [0, 0, 0, 0, 0], xmp()]); // not packed, of no language
  const chunk = joined([bytesOf(named.length - 4, 4).reverse(), named, bytesOf(crc32(named), 4).reverse()]);
  return new Blob([bytes.subarray(0, first), chunk, bytes.subarray(first)], { type: blob.type });
}
