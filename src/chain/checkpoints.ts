/** A block that the scan has stood on: number and hash. */
export type Checkpoint = [number: number, hash: string];

/** A chain that was set back is known for it before it has grown by this part of what it lost (hard case 32). */
const DENSITY = 16;
/** Of so many blocks each that was stood on is kept: after an outage of the chain the first new block tells of it. */
const ALL_WITHIN = 64;

/**
 * Adds a block to the checkpoints (newest first) and thins them: the further back, the wider the spacing, so that a few
 * hundred of them reach back over millions of blocks and a reorg of any depth finds its ancestor close by. Spacing goes by
 * fixed buckets of 2^k blocks: a bucket keeps its newest block, and buckets merge in pairs as they grow old.
 */
export function addCheckpoint(checkpoints: readonly Checkpoint[], block: Checkpoint): Checkpoint[] {
  const kept: Checkpoint[] = [block];
  for (const checkpoint of checkpoints) {
    const [newer] = kept[kept.length - 1] ?? block;
    const distance = block[0] - checkpoint[0];
    const spacing = distance <= ALL_WITHIN ? 1 : 2 ** Math.floor(Math.log2(distance / DENSITY));
    const sameBucket = Math.floor(checkpoint[0] / spacing) === Math.floor(newer / spacing);
    const isOldest = checkpoint === checkpoints.at(-1);
    if (checkpoint[0] < newer && (isOldest || !sameBucket)) kept.push(checkpoint);
  }
  return kept;
}
