CREATE TABLE `payment_links` (
	`tx_hash` text PRIMARY KEY NOT NULL,
	`payment` text NOT NULL,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE `payments` (
	`id` text PRIMARY KEY NOT NULL,
	`kind` text NOT NULL,
	`chain_id` integer NOT NULL,
	`payer` text NOT NULL,
	`nonce` text NOT NULL,
	`identifier` text,
	`request` text NOT NULL,
	`amount` text NOT NULL,
	`pay_to` text NOT NULL,
	`valid_after` integer NOT NULL,
	`valid_before` integer NOT NULL,
	`signature` text NOT NULL,
	`state` text NOT NULL,
	`step` text NOT NULL,
	`reason` text,
	`generation` integer DEFAULT 1 NOT NULL,
	`from_block` integer NOT NULL,
	`token_id` integer,
	`tier` integer,
	`duration_days` integer,
	`ssh_public_key` text,
	`region` text,
	`quoted_block` integer,
	`incarnation` text,
	`cost` text,
	`bought_at` integer,
	`held` integer DEFAULT false NOT NULL,
	`purchase_tx` text,
	`settle_tx` text,
	`transfer_tx` text,
	`refund_tx` text,
	`served_at` integer,
	`wake_at` integer,
	`created_at` integer NOT NULL,
	`settled_at` integer,
	`ended_at` integer
);
--> statement-breakpoint
CREATE UNIQUE INDEX `payments_claim` ON `payments` (`chain_id`,`payer`,`nonce`);--> statement-breakpoint
CREATE UNIQUE INDEX `payments_identifier` ON `payments` (`payer`,`identifier`) WHERE identifier IS NOT NULL;--> statement-breakpoint
CREATE INDEX `payments_to_wake` ON `payments` (`wake_at`) WHERE wake_at IS NOT NULL;--> statement-breakpoint
CREATE INDEX `payments_open` ON `payments` (`payer`) WHERE state IN ('claimed', 'authorized', 'settling');--> statement-breakpoint
CREATE INDEX `payments_uncaptured` ON `payments` (`bought_at`) WHERE bought_at IS NOT NULL AND state <> 'settled';--> statement-breakpoint
CREATE INDEX `payments_refused` ON `payments` (`payer`) WHERE reason = 'capture_refused';--> statement-breakpoint
CREATE INDEX `payments_by_purchase` ON `payments` (`incarnation`) WHERE incarnation IS NOT NULL;--> statement-breakpoint
CREATE INDEX `payments_by_settlement` ON `payments` (`settle_tx`) WHERE settle_tx IS NOT NULL;--> statement-breakpoint
CREATE INDEX `payments_by_transfer` ON `payments` (`transfer_tx`) WHERE transfer_tx IS NOT NULL;--> statement-breakpoint
CREATE INDEX `payments_by_refund` ON `payments` (`refund_tx`) WHERE refund_tx IS NOT NULL;--> statement-breakpoint
CREATE INDEX `payments_by_nonce` ON `payments` (`nonce`);--> statement-breakpoint
CREATE INDEX `payments_held` ON `payments` (`tier`) WHERE held = 1;--> statement-breakpoint
CREATE INDEX `payments_by_state` ON `payments` (`state`,`created_at`);--> statement-breakpoint
CREATE TABLE `quotes` (
	`tier` integer NOT NULL,
	`price_per_day` text NOT NULL,
	`block_number` integer NOT NULL,
	`quoted_at` integer NOT NULL,
	PRIMARY KEY(`tier`, `price_per_day`)
);
