CREATE TABLE `key_holders` (
	`incarnation` text NOT NULL,
	`attempt` integer NOT NULL,
	`address` text NOT NULL,
	`clear_at` integer,
	`sealed_at` integer,
	`sealed` text,
	PRIMARY KEY(`incarnation`, `attempt`, `address`)
);
--> statement-breakpoint
CREATE TABLE `settlements` (
	`tx_hash` text NOT NULL,
	`log_index` integer NOT NULL,
	`payment` text NOT NULL,
	PRIMARY KEY(`tx_hash`, `log_index`)
);
--> statement-breakpoint
CREATE UNIQUE INDEX `settlements_by_payment` ON `settlements` (`payment`);--> statement-breakpoint
DROP INDEX `payments_uncaptured`;--> statement-breakpoint
DROP INDEX `payments_to_wake`;--> statement-breakpoint
ALTER TABLE `payments` ADD `capture_first` integer DEFAULT false NOT NULL;--> statement-breakpoint
ALTER TABLE `payments` ADD `reverts` integer DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE `payments` ADD `failing_since` integer;--> statement-breakpoint
CREATE INDEX `payments_nobodys_to_wake` ON `payments` (`wake_at`) WHERE wake_at IS NOT NULL AND (state IN ('claimed', 'releasing') AND bought_at IS NULL);--> statement-breakpoint
CREATE INDEX `payments_to_forget` ON `payments` (`ended_at`) WHERE state = 'released' AND bought_at IS NULL AND cost IS NULL AND settle_tx IS NULL AND incarnation IS NULL AND held = 0 AND reason IS NOT 'capture_refused';--> statement-breakpoint
CREATE INDEX `payments_paid` ON `payments` (`payer`) WHERE kind = 'compute' AND state = 'settled';--> statement-breakpoint
CREATE INDEX `payments_by_order` ON `payments` (`payer`,`created_at`) WHERE kind = 'compute';--> statement-breakpoint
CREATE INDEX `payments_unpaid` ON `payments` (`bought_at`,`amount`) WHERE kind = 'compute' AND capture_first = 0 AND (state IN ('claimed', 'authorized', 'settling') OR (state = 'releasing' AND bought_at IS NOT NULL));--> statement-breakpoint
CREATE INDEX `payments_unbought` ON `payments` (`amount`) WHERE kind = 'compute' AND bought_at IS NULL AND state IN ('claimed', 'authorized', 'settling', 'settled');--> statement-breakpoint
CREATE INDEX `payments_bought` ON `payments` (`bought_at`,`cost`) WHERE bought_at IS NOT NULL;--> statement-breakpoint
CREATE INDEX `payments_to_wake` ON `payments` (`wake_at`) WHERE wake_at IS NOT NULL AND NOT (state IN ('claimed', 'releasing') AND bought_at IS NULL);--> statement-breakpoint
ALTER TABLE `attempts` ADD `brought_by` text;--> statement-breakpoint
ALTER TABLE `vms` ADD `sealed_at` integer;--> statement-breakpoint
CREATE INDEX `vms_sealed` ON `vms` (`sealed_at`) WHERE ssh_private_key IS NOT NULL AND sealed_at IS NOT NULL;--> statement-breakpoint
UPDATE attempts SET brought_by = (SELECT payer FROM payments WHERE payments.incarnation = attempts.incarnation AND payments.ssh_public_key = attempts.public_key) WHERE public_key IN (SELECT ssh_public_key FROM payments WHERE ssh_public_key IS NOT NULL);
--> statement-breakpoint
INSERT OR IGNORE INTO key_holders (incarnation, attempt, address, sealed_at) SELECT vms.incarnation, vms.attempt, payments.payer, payments.served_at FROM payments JOIN vms ON vms.token_id = payments.token_id AND vms.current = 1 WHERE payments.kind = 'credentials' AND payments.served_at IS NOT NULL;
