CREATE TABLE `settlements` (
	`tx_hash` text NOT NULL,
	`log_index` integer NOT NULL,
	`payment` text NOT NULL,
	PRIMARY KEY(`tx_hash`, `log_index`)
);
--> statement-breakpoint
CREATE UNIQUE INDEX `settlements_by_payment` ON `settlements` (`payment`);--> statement-breakpoint
ALTER TABLE `payments` ADD `reverts` integer DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE `payments` ADD `failing_since` integer;