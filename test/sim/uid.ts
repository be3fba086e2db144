// Stands in for viem's: a name per client.
let made = 0;

export const uid = (): string => {
  made += 1;
  return `client-${made}`;
};
