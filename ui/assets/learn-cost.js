// What each stage of the network costs for one picture, from the model's shape as /v1/models/{name} tells it.

/**
 * Multiply-adds and learned numbers of the seven stages.
 * @param model   width, depth, decoder_width, decoder_depth, patch_size, channels, mlp_ratio, mask_tokens, target.
 * @param patches How many the picture has (L); visible: how many of them the model sees (K).
 * @return {stages: {name: {work, learned, share}}, work, everywhere, out}
 *         out: numbers that the network gives for each patch; everywhere: the work if mask tokens went through the encoder as well.
 */
function stageCosts(model, patches, visible) {
  const { width, depth, decoder_width: narrow, decoder_depth: shallow, mlp_ratio: mlp } = model;
  const values = model.channels * model.patch_size ** 2;
  const out = values + (model.target === 'norm_pixel_stats' ? 2 : 0); // with mean and deviation of each patch
  // One block: queries, keys, values and their projection 4, the two layers of the MLP 2 * mlp; attention compares all with all.
  const block = (tokens, side) => (4 + 2 * mlp) * tokens * side ** 2 + 2 * tokens ** 2 * side;
  const learnedBlock = (side) => (4 + 2 * mlp) * side ** 2 + (9 + mlp) * side; // weights, biases, two norms
  const inside = model.mask_tokens === 'encoder'; // an ablation of the paper: the encoder sees every place
  const all = patches + 1, seen = inside ? all : visible + 1; // with the class token
  const stages = {
    patches: { work: 0, learned: 0 },
    visible: { work: 0, learned: 0 },
    tokens: { work: visible * values * width, learned: values * width + 2 * width },
    encoder: { work: depth * block(seen, width), learned: depth * learnedBlock(width) + (inside ? 3 : 2) * width },
    mask_tokens: { work: seen * width * narrow, learned: width * narrow + 2 * narrow },
    decoder: { work: shallow * block(all, narrow), learned: shallow * learnedBlock(narrow) + 2 * narrow },
    pixels: { work: patches * narrow * out, learned: narrow * out + out },
  };
  const work = Object.values(stages).reduce((sum, stage) => sum + stage.work, 0);
  for (const stage of Object.values(stages)) stage.share = stage.work / work;
  const spared = depth * (block(all, width) - block(seen, width)) + (all - seen) * width * narrow;
  return { stages, work, everywhere: work + spared, out };
}
