/** A block at which the scan's cursor stood: number and hash. */
export type Checkpoint = [number: number, hash: string];

/**
 * Spacing of old checkpoints, as a share of their distance: a rollback is noticed before the new chain has grown by a sixteenth
 * of the blocks that were lost (hard case 32).
 */
const DENSITY = 16;
/** Every checkpoint within this many blocks is kept: after a short rollback, the first new block already differs from one. */
const ALL_WITHIN = 64;

/**
 * Adds a block to the checkpoints (newest first) and thins the old ones: spacing grows with distance, so that a few hundred
 * checkpoints reach back over millions of blocks and a reorg of any depth has a checkpoint close below its ancestor. Spacing
 * follows fixed buckets of 2^k blocks: a bucket keeps its newest block, and old buckets merge in pairs.
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
