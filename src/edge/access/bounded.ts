/** Takes the oldest out of a map that is full. */
export function makeRoom<Key>(map: Map<Key, unknown>, max: number): void {
  if (map.size < max) return;
  const [oldest] = map.keys();
  if (oldest !== undefined) map.delete(oldest);
}
