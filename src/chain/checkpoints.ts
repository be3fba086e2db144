/** A block that the scan has stood on: number and hash. */
export type Checkpoint = [number: number, hash: string];

const DENSITY = 4;

/**
 * Adds a block to the checkpoints (newest first) and thins them: the further back, the wider the spacing, so that some
 * sixty of them reach back over millions of blocks and a reorg of any depth finds its ancestor close by.
 */
export function addCheckpoint(checkpoints: readonly Checkpoint[], block: Checkpoint): Checkpoint[] {
  const kept: Checkpoint[] = [block];
  for (const checkpoint of checkpoints) {
    const [newer] = kept[kept.length - 1] ?? block;
    const oldest = checkpoint === checkpoints.at(-1);
    const age = block[0] - checkpoint[0];
    if (checkpoint[0] < newer && (oldest || newer - checkpoint[0] >= age / DENSITY)) kept.push(checkpoint);
  }
  return kept;
}
