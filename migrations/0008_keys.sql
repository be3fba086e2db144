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
ALTER TABLE `attempts` ADD `brought_by` text;--> statement-breakpoint
ALTER TABLE `vms` ADD `sealed_at` integer;--> statement-breakpoint
CREATE INDEX `vms_sealed` ON `vms` (`sealed_at`) WHERE ssh_private_key IS NOT NULL AND sealed_at IS NOT NULL;--> statement-breakpoint
UPDATE attempts SET brought_by = (SELECT payer FROM payments WHERE payments.incarnation = attempts.incarnation AND payments.ssh_public_key = attempts.public_key) WHERE public_key IN (SELECT ssh_public_key FROM payments WHERE ssh_public_key IS NOT NULL);
--> statement-breakpoint
INSERT OR IGNORE INTO key_holders (incarnation, attempt, address, sealed_at) SELECT vms.incarnation, vms.attempt, payments.payer, payments.served_at FROM payments JOIN vms ON vms.token_id = payments.token_id AND vms.current = 1 WHERE payments.kind = 'credentials' AND payments.served_at IS NOT NULL;
