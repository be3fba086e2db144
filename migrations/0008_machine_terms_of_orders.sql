-- The same of machines that are there already, by the payment that each serves.
UPDATE `vms` SET `terms` = (
  SELECT json_object('payment', `id`, 'payer', `payer`, 'sshPublicKey', `ssh_public_key`, 'region', `payments`.`region`, 'ports', `payments`.`ports`,
    'pricePerDay', CAST(`amount` AS REAL) / `duration_days`)
  FROM `payments` WHERE `payments`.`incarnation` = `vms`.`incarnation` AND `duration_days` IS NOT NULL
  ORDER BY `payments`.`created_at` DESC LIMIT 1)
WHERE `terms` IS NULL AND EXISTS (SELECT 1 FROM `payments` WHERE `payments`.`incarnation` = `vms`.`incarnation`);
