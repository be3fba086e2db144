CREATE TABLE `refunds` (
	`incarnation` text NOT NULL,
	`kind` text NOT NULL,
	`token_id` integer NOT NULL,
	`state` text NOT NULL,
	`reason` text,
	`owed_seconds` integer,
	`amount` text NOT NULL,
	`recipient` text,
	`pay_to` text,
	`tx_hash` text,
	`wake_at` integer,
	`created_at` integer NOT NULL,
	`settled_at` integer,
	PRIMARY KEY(`incarnation`, `kind`)
);
--> statement-breakpoint
CREATE INDEX `refunds_to_wake` ON `refunds` (`wake_at`) WHERE wake_at IS NOT NULL;--> statement-breakpoint
CREATE INDEX `refunds_by_token` ON `refunds` (`token_id`);--> statement-breakpoint
CREATE INDEX `refunds_by_state` ON `refunds` (`state`,`token_id`);--> statement-breakpoint
ALTER TABLE `vms` ADD `late_seconds` integer;