// What the tables of lives have alike: a machine's, a payment's and a refund's. A row is at one stage; the table says which
// stages it may become. Every writer of a stage asks `requireMove`.

/** A table of stages: `becomes` lists the stages that may follow one, itself aside. */
export type Life<Stage extends string> = Readonly<Record<Stage, { becomes: readonly Stage[] }>>;

/** A move that a life does not have: a mistake of ours. Nothing is written. */
export class ForbiddenMove extends Error {
  constructor(thing: string, from: string, to: string) {
    super(`A ${thing} does not go from ${from} to ${to}.`);
    this.name = "ForbiddenMove";
  }
}

/** Throws `ForbiddenMove` unless every one of these stages may become `to`, or is it. */
export function requireMove<Stage extends string>(
  thing: string,
  life: Life<Stage>,
  from: Stage | readonly Stage[],
  to: Stage,
): void {
  for (const stage of typeof from === "string" ? [from] : from) {
    // Whoever writes rows by hand can write a stage that is none.
    const known: Life<Stage>[Stage] | undefined = life[stage];
    if (stage !== to && !known?.becomes.includes(to)) throw new ForbiddenMove(thing, stage, to);
  }
}
