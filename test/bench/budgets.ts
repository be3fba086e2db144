/** What each Worker may weigh, gzipped, in KiB: Cloudflare takes 10 MB, and start-up has to stay far below a second. */
export const BUDGETS_KIB: Readonly<Record<string, number>> = { edge: 1_100, provisioner: 460 };
