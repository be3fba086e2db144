// Stands in for drizzle's: there is one copy of it here, and what its classes are made of says what is which. Its own search
// by names takes a twentieth of a run.
export const entityKind = Symbol.for("drizzle:entityKind");
export const hasOwnEntityKind = Symbol.for("drizzle:hasOwnEntityKind");

type Class = abstract new (...args: never[]) => unknown;
export const is = (value: unknown, type: Class): boolean => value instanceof type;
